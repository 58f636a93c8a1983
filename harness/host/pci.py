"""A host's PCI devices: describe them, assign them to vfio-pci, and give them back.

sysfs: Documentation/ABI/testing/sysfs-bus-pci (driver_override, unbind, drivers_probe).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import LabError
from harness.host.session import Session

SYSFS = "/sys/bus/pci/devices"


@dataclass(frozen=True)
class PciDevice:
    """One function as the host sees it now. `iommu` names the host SMMU in front of it."""

    bdf: str
    vendor: int
    device: int
    class_code: int
    driver: str | None
    iommu: str | None

    @property
    def segment(self) -> int:
        """Return the PCI segment group number, which Linux calls the domain."""
        return int(self.bdf.partition(":")[0], 16)

    @property
    def requester_id(self) -> int:
        """Return the requester ID, bus[15:8] devfn[7:0]. `Host.stream_id` gives the StreamID."""
        _, bus, slot, function = self.bdf.replace(".", ":").split(":")
        return int(bus, 16) << 8 | int(slot, 16) << 3 | int(function, 16)


_DESCRIBE = """\
for bdf in {bdfs}; do
  d={sysfs}/$bdf
  if [ -e $d ]; then
    echo $bdf $(cat $d/vendor $d/device $d/class) \
      $(basename $(readlink $d/driver || echo -)) $(basename $(readlink $d/iommu || echo -))
  else echo $bdf absent; fi
done"""


def describe(session: Session, bdfs: Sequence[str]) -> dict[str, PciDevice]:
    """Return the devices by address. Raises LabError for one that is not there."""
    script = _DESCRIBE.format(bdfs=" ".join(map(shlex.quote, bdfs)), sysfs=SYSFS)
    found = {}
    for line in session.connection.run(script).text.splitlines():
        bdf, *facts = line.split()
        if facts == ["absent"]:
            raise LabError(
                f"host {session.connection.target.known_as} has no PCI device {bdf}",
                fix="compare `devices` in the inventory with `lspci -D` on the host",
            )
        vendor, device, class_code, driver, iommu = facts
        found[bdf] = PciDevice(
            bdf,
            int(vendor, 16),
            int(device, 16),
            int(class_code, 16) >> 8,
            None if driver == "-" else driver,
            None if iommu == "-" else iommu,
        )
    return found


# A device in use must not be taken away: an open vfio device, a mounted disk, a disk with swap.
_BUSY = """\
d={sysfs}/{bdf}
for v in $(ls $d/vfio-dev 2>/dev/null); do
  fuser /dev/vfio/devices/$v 2>/dev/null | sed 's/^ */held by process /'
done
for n in $(ls $d/nvme 2>/dev/null); do
  grep -hoE "^/dev/${{n}}n[0-9a-z]+ [^ ]+" /proc/mounts /proc/swaps | sed 's/ / used at /'
done
true"""

_BIND = """\
set -e
d={sysfs}/{bdf}
[ ! -e $d/driver ] || echo {bdf} >$d/driver/unbind
echo vfio-pci >$d/driver_override
echo {bdf} >/sys/bus/pci/drivers_probe
[ "$(basename $(readlink $d/driver))" = vfio-pci ]"""

_RELEASE = """\
set -e
d={sysfs}/{bdf}
[ -e $d ] || exit 0
[ ! -e $d/driver ] || echo {bdf} >$d/driver/unbind
echo >$d/driver_override
{back}"""


def assign(session: Session, bdfs: Sequence[str]) -> None:
    """Bind these devices, and no others, to vfio-pci.

    Their release is registered with the agent first, so that it happens even if this process is
    killed. A device that vfio-pci drives already stays with it. Raises LabError for a device that
    is absent or busy; then no device is touched.
    """
    devices = describe(session, bdfs)
    for bdf in bdfs:
        users = session.connection.run(_BUSY.format(sysfs=SYSFS, bdf=bdf)).text.strip()
        if users:
            raise LabError(
                f"device {bdf} is in use: {'; '.join(users.splitlines())}",
                fix="end what uses the device, or remove the device from the inventory",
            )
    session.connection.run("modprobe vfio-pci 2>/dev/null; [ -e /sys/bus/pci/drivers/vfio-pci ]")
    for bdf, device in devices.items():
        if device.driver == "vfio-pci":
            continue
        back = f"echo {bdf} >/sys/bus/pci/drivers_probe" if device.driver else "true"
        release_it = _RELEASE.format(sysfs=SYSFS, bdf=bdf, back=back)
        session.on_end(_undo_name(bdf), release_it)
        session.connection.run(_BIND.format(sysfs=SYSFS, bdf=bdf))


def release(session: Session, bdfs: Sequence[str]) -> None:
    """Give devices back to the drivers that `assign` took them from."""
    session.undo_now([_undo_name(bdf) for bdf in bdfs])


def is_present(session: Session, bdf: str) -> bool:
    return session.connection.run(["test", "-e", f"{SYSFS}/{bdf}"], check=False).status == 0


def remove(session: Session, bdf: str) -> None:
    """Begin to remove a device from the host, as if it were pulled out. Return at once: the kernel
    waits until the device's user has closed it. `rescan`, or the session's end, brings it back."""
    # The lock is held until the removal is complete: an earlier scan would find the old device.
    lock = f"{session.folder}/remove-{bdf}"
    session.on_end(f"rescan {bdf}", f"flock -w 20 {lock} true; {_RESCAN}")
    going = f"flock {lock} sh -c 'echo 1 >{SYSFS}/{bdf}/remove'"
    session.connection.run(f"setsid {going} </dev/null >/dev/null 2>&1 &")


def rescan(session: Session) -> None:
    """Find devices that were removed. They come back without vfio-pci: `assign` them again."""
    session.connection.run(_RESCAN)


_RESCAN = "echo 1 >/sys/bus/pci/rescan"


def _undo_name(bdf: str) -> str:
    return f"vfio {bdf}"
