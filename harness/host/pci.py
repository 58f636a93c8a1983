"""A host's PCI devices: describe them, assign them to their vfio drivers, and give them back.

sysfs: Documentation/ABI/testing/sysfs-bus-pci (driver_override, bind, unbind).
"""

from __future__ import annotations

import enum
import json
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from harness.errors import LabError
from harness.host import dmesg, give_back, vfio
from harness.host.connection import CommandFailedError
from harness.host.session import ROOT, Session
from harness.waiting import wait_for

SYSFS = "/sys/bus/pci/devices"
DRIVERS = "/sys/bus/pci/drivers"


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


# What the choice of a vfio driver depends on, and what the release of a device does.
_SURVEY = """\
for bdf in {bdfs}; do
  d={sysfs}/$bdf
  echo modalias $bdf $(cat $d/modalias)
  echo override $bdf $(cat $d/driver_override)
  echo note $bdf $(cat {notes} 2>/dev/null)
done
r=/lib/modules/$(uname -r)
grep -s '^alias vfio_pci:' $r/modules.alias | sed 's/^/offer - /'
[ ! -e $r/modules.builtin.modinfo ] ||
  tr '\\0' '\\n' <$r/modules.builtin.modinfo | sed -n '/\\.alias=vfio_pci:/s/^/offer - /p'
true"""

_LOAD = """\
dmesg | tail -n 1 | sed 's/^/log - /'
for m in {modules}; do modprobe $m 2>&1 | sed "s/^/modprobe $m /"; done
ls -d /sys/module/*/drivers/pci:* /sys/bus/pci/drivers/* 2>/dev/null | sed 's/^/driver - /'
true"""

# /bin/echo tells why a write failed; the echo of dash does not.
_BIND = """\
d={sysfs}/{bdf}
{take_note} || exit
[ ! -e $d/driver ] || /bin/echo {bdf} >$d/driver/unbind
/bin/echo {driver} >$d/driver_override
/bin/echo {bdf} >/sys/bus/pci/drivers/{driver}/bind
echo $(basename "$(readlink $d/driver || echo -)") $(ls $d/vfio-dev 2>/dev/null)"""

# Those that have the driver of which their note says that they were given it.
_AS_GIVEN = """\
for bdf in {bdfs}; do
  read -r had override given <{notes} || continue
  link=$(readlink {sysfs}/$bdf/driver)
  [ "${{link##*/}}" != "$given" ] || echo $bdf
done 2>/dev/null
true"""

_VFIO_MODULES = """\
find /lib/modules/$(uname -r) -name '*vfio[-_]pci.ko*' 2>/dev/null | sed 's,.*/,,; s,[.]ko.*,,'
ls /sys/bus/pci/drivers | grep vfio
true"""

#: How many lines of the host's kernel log an error quotes.
LOG_LINES = 5
#: How many uses of a device an error tells.
USES = 6
#: Longest that a device is in use without being kept, in seconds: udev looks into a disk that its
#: driver has just taken, and opens it for that.
SETTLE_SECONDS = 3.0


def assign(session: Session, bdfs: Sequence[str], named: Mapping[str, str] | None = None) -> None:
    """Bind these devices, and no others, to a vfio driver each: the one that `named` has for its
    address, else the one that the host's kernel offers for it (see harness.host.vfio).

    Their release is registered with the agent first, so that it happens even if this process is
    killed. A device that its driver has already stays with it. Raises LabError for a device that is
    absent or in use, or whose driver the host does not have; then no device is touched. Raises it
    too for a device that the driver does not take; then all devices are given back.
    """
    devices = describe(session, bdfs)
    refuse_used(session, bdfs)
    notes = give_back.note_file(ROOT, "$bdf")
    survey = _answer(session, _SURVEY.format(sysfs=SYSFS, bdfs=shlex.join(bdfs), notes=notes))
    offers = vfio.aliases(line for _, line in survey["offer"])
    wanted = {
        bdf: _choose(modalias, offers, (named or {}).get(bdf))
        for bdf, modalias in survey["modalias"]
    }
    drivers, log_time = _load(session, wanted)
    override, noted = dict(survey["override"]), dict(survey["note"])
    touched: list[str] = []
    for bdf, device in devices.items():
        before = give_back.Before.of(device.driver, override[bdf], noted[bdf])
        as_wanted = device.driver == drivers[bdf]
        if as_wanted and before.driver == device.driver:
            continue
        file = give_back.note_file(ROOT, bdf)
        session.on_end(
            _undo_name(bdf),
            give_back.command(bdf, before, file=file, devices=SYSFS, drivers=DRIVERS),
        )
        if as_wanted:
            continue  # an earlier session has left it like this, or this one assigned it before
        touched.append(bdf)
        note = give_back.take_note(before, drivers[bdf], file)
        problem = _bind(session, bdf, drivers[bdf], wanted[bdf], log_time, note)
        if problem:
            try:
                raise problem
            finally:
                release(session, touched)


def held(session: Session, bdfs: Sequence[str]) -> list[str]:
    """Return those of these devices that the session has assigned, and that are as `assign` left
    them."""
    registered = session.registered()
    mine = [bdf for bdf in bdfs if _undo_name(bdf) in registered]
    notes = give_back.note_file(ROOT, "$bdf")
    script = _AS_GIVEN.format(bdfs=shlex.join(mine), sysfs=SYSFS, notes=notes)
    return session.connection.run(script).text.split() if mine else []


def refuse_used(session: Session, bdfs: Sequence[str]) -> None:
    """Raise LabError if something uses one of these devices for longer than SETTLE_SECONDS."""
    uses: dict[str, list[str]] = {}

    def free() -> bool:
        uses.clear()
        uses.update(_uses(session, bdfs))
        return not uses

    try:
        wait_for(
            "devices that nothing uses",
            free,
            deadline=SETTLE_SECONDS,
            interval=0.2,
            error=_InUseError,
        )
    except _InUseError:
        bdf, said = next(iter(uses.items()))
        more = [f"and {len(said) - USES} more"] if len(said) > USES else []
        raise LabError(
            f"device {bdf} is in use: {'; '.join(said[:USES] + more)}",
            fix="end what uses the device, or remove the device from the inventory",
        ) from None


class _InUseError(LabError):
    """A device is still in use."""


def _uses(session: Session, bdfs: Sequence[str]) -> dict[str, list[str]]:
    """Return what uses devices, by address: those that nothing uses are left out. Raises LabError
    if that cannot be found out."""
    program = resources.files("harness.host").joinpath("in_use.py").read_bytes()
    try:
        answer = session.connection.run(["python3", "-I", "-", *bdfs], stdin=program)
    except CommandFailedError as failed:
        raise LabError(
            f"what uses the devices of host {session.connection.target.known_as} cannot be told: "
            f"{failed.message}",
            fix="log in as root: others may not see what all processes have open",
        ) from failed
    return {bdf: uses for bdf, uses in json.loads(answer.stdout).items() if uses}


def release(session: Session, bdfs: Sequence[str]) -> None:
    """Give devices back to the drivers that `assign` took them from. Raises LabError for one that
    does not have its old driver and driver_override afterwards."""
    session.undo_now([_undo_name(bdf) for bdf in bdfs])


class _Chosen(enum.Enum):
    """Who chose a device's driver, as errors say it."""

    INVENTORY = "which the inventory names as its vfio_driver"
    KERNEL = "which the kernel offers for it"
    NOBODY = "which drives any device"


@dataclass(frozen=True)
class _Choice:
    """The module that shall drive a device."""

    module: str
    chosen: _Chosen


def _choose(modalias: str, offers: Sequence[vfio.Alias], named: str | None) -> _Choice:
    if named:
        return _Choice(vfio.module_name(named), _Chosen.INVENTORY)
    module = vfio.offered(modalias, offers)
    if module:
        return _Choice(module, _Chosen.KERNEL)
    return _Choice(vfio.ANY_DEVICE, _Chosen.NOBODY)


def _load(session: Session, wanted: Mapping[str, _Choice]) -> tuple[dict[str, str], float]:
    """Load the modules of all devices; return each device's driver, and the time of the kernel
    log's last line before that. Raises LabError if a module cannot be loaded or has no driver."""
    modules = sorted({choice.module for choice in wanted.values()})
    answer = _answer(session, _LOAD.format(modules=shlex.join(modules)))
    log_time = dmesg.last_time("".join(line for _, line in answer["log"]))
    paths = [path for _, path in answer["driver"]]
    drivers = {}
    for bdf, choice in wanted.items():
        driver = vfio.registered(choice.module, paths)
        if driver is None:
            said = [words for module, words in answer["modprobe"] if module == choice.module]
            raise LabError(
                f"device {bdf} needs the driver of module {choice.module}, {choice.chosen.value}; "
                f"host {session.connection.target.known_as} does not have it: "
                f"{'; '.join(said) or 'the module is loaded, but has no PCI driver'}"
                f"{_logged(session, log_time)}",
                fix=_other_driver(session, choice),
            )
        drivers[bdf] = driver
    return drivers, log_time


def _other_driver(session: Session, choice: _Choice) -> str:
    found = session.connection.run(_VFIO_MODULES).text.split()
    there = ", ".join(sorted(set(map(vfio.module_name, found)))) or "none"
    if choice.chosen is _Chosen.INVENTORY:
        return (
            "correct `vfio_driver` of the device in the inventory, or leave it out: the host has "
            f"the vfio drivers {there}"
        )
    if choice.chosen is _Chosen.KERNEL:
        return (
            "install all modules of the kernel that the host runs, or name another driver as "
            f"`vfio_driver` of the device in the inventory: the host has {there}"
        )
    return "boot a kernel with CONFIG_VFIO_PCI, and install its modules"


def _bind(
    session: Session, bdf: str, driver: str, choice: _Choice, log_time: float, take_note: str
) -> LabError | None:
    """Take a note of a device and bind it to a driver; return what is wrong if it is no vfio device
    of that driver afterwards."""
    script = _BIND.format(sysfs=SYSFS, bdf=bdf, driver=shlex.quote(driver), take_note=take_note)
    done = session.connection.run(script, check=False)
    now, *vfio_devices = done.text.split() or ["-"]
    if now == driver and vfio_devices:
        return None
    said = "; ".join(done.stderr.decode(errors="replace").split("\n")).strip("; ")
    why = (f": {said}" if said else "") + _logged(session, log_time)
    where = f"on host {session.connection.target.known_as}"
    if now == driver:
        return LabError(
            f"device {bdf} is bound to {driver} {where}, but that made no vfio device of it{why}",
            fix=_other_driver(session, choice),
        )
    if now == "-":
        return LabError(
            f"driver {driver} refuses device {bdf} {where}{why}",
            fix=_other_driver(session, choice)
            if choice.chosen is _Chosen.INVENTORY
            else "act on what the kernel says, or name another driver as `vfio_driver` of the "
            "device in the inventory",
        )
    return LabError(
        f"device {bdf} is bound to {now} instead of {driver} {where}{why}",
        fix=f"stop the service, or remove the udev rule, that gives the device to {now}",
    )


def _logged(session: Session, log_time: float) -> str:
    """Return the end of an error: what the host's kernel has logged since."""
    lines = dmesg.after(session.connection.run("dmesg").text, log_time).splitlines()
    if not lines:
        return "; its kernel logged nothing"
    return "; its kernel logged:\n    " + "\n    ".join(lines[-LOG_LINES:])


def _answer(session: Session, script: str) -> dict[str, list[tuple[str, str]]]:
    """Run a script that prints lines of a tag, a name and a text; return names and texts by tag."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for line in session.connection.run(script).text.splitlines():
        tag, name, *text = line.split(" ", 2)
        found[tag].append((name, "".join(text)))
    return found


def is_present(session: Session, bdf: str) -> bool:
    return session.connection.run(["test", "-e", f"{SYSFS}/{bdf}"], check=False).status == 0


def remove(session: Session, bdf: str) -> None:
    """Begin to remove a device from the host, as if it were pulled out. Return at once: the kernel
    waits until the device's user has closed it. `rescan`, or the session's end, brings it back."""
    # The lock is held until the removal is complete: an earlier scan would find the old device.
    lock = f"{session.folder}/remove-{bdf}"
    session.on_end(f"rescan {bdf}", _BRING_BACK.format(bdf=bdf, lock=lock, sysfs=SYSFS))
    going = f"flock {lock} sh -c 'echo 1 >{SYSFS}/{bdf}/remove'"
    session.connection.run(f"setsid {going} </dev/null >/dev/null 2>&1 &")


def rescan(session: Session) -> None:
    """Find devices that were removed. They come back to their own drivers: `assign` again."""
    session.connection.run(_RESCAN)


_RESCAN = "echo 1 >/sys/bus/pci/rescan"

_BRING_BACK = f"""\
[ ! -e {{lock}} ] || flock -w 20 {{lock}} true ||
  {{{{ echo "device {{bdf}} is still being removed: end what uses it, then {_RESCAN}"; exit 1; }}}}
{_RESCAN}
[ -e {{sysfs}}/{{bdf}} ] ||
  {{{{ echo "device {{bdf}} is not found again: reset the machine, or its slot"; exit 1; }}}}"""


def _undo_name(bdf: str) -> str:
    return f"vfio {bdf}"
