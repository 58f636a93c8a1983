"""NVMe drives of any vendor, which a guest reads and writes as block devices, and which perform DMA
that tests choose: see nvme_dma and nvme_data."""

from __future__ import annotations

from harness.devices.kind import DeviceKind, Emulation, PciClass
from harness.devices.nvme_data import CommandData
from harness.devices.nvme_dma import Completions, LogPage, LogWords, QueueFetch
from harness.errors import ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.hotplug import PLUG_SECONDS
from harness.guest.vfio import bind_command
from harness.host.ability import Ability

#: The folder of the first namespace, in the device's folder of the guest's sysfs.
_NAMESPACE = "nvme/nvme*/nvme*n1"
#: How often a guest looks for the namespace, ten times a second.
_TRIES = int(PLUG_SECONDS * 10)
#: The size of a request, in KiB. It takes several pages, so that the drive gets a list of them
#: (PRP), and the SMMU translates each.
BLOCK_KIB = 64
#: The fewest bytes a second that a guest of an emulated host moves.
SLOWEST = 100_000


class Disk:
    """The first namespace of an NVMe drive. `path` is the guest's block device. The drive is given
    to the guest's nvme driver if it does not have it. Raises ProductError if the guest has no
    namespace: the drive is not plugged, or the driver found none."""

    def __init__(self, guest: Guest, device: AssignedDevice) -> None:
        self.guest, self.device = guest, device
        there = f"ls -d {device.sysfs}/{_NAMESPACE} 2>/dev/null"
        wait = f"i=0; until {there} || [ $i = {_TRIES} ]; do i=$((i + 1)); usleep 100000; done"
        drive = f"{{ {bind_command(device, 'nvme')}; }} && {{ {wait}; }} && {there} >/dev/null"
        found = guest.run(f"{there} || {{ {drive}; }}", timeout=PLUG_SECONDS + 30, check=False)
        if found.status != 0:
            raise ProductError(
                f"guest {guest.name} has no namespace of the {device.role} at {device.guest_bdf}: "
                f"{found.text.strip()}",
                fix="look in the guest's kernel log for what its nvme driver says of the drive",
            )
        self.sysfs = found.text.strip()
        self.path = f"/dev/{self.sysfs.rsplit('/', 1)[1]}"

    def write_random(self, *, mib: int, at_mib: int = 0) -> str:
        """Write `mib` MiB of random data at `at_mib` MiB, past the guest's cache; return its
        SHA-256."""
        blocks, seek = mib * 1024 // BLOCK_KIB, at_mib * 1024 // BLOCK_KIB
        return self._digest(
            f"dd if=/dev/urandom bs={BLOCK_KIB}k count={blocks} 2>/dev/null | tee /tmp/data | "
            f"sha256sum; dd if=/tmp/data of={self.path} bs={BLOCK_KIB}k seek={seek} oflag=direct "
            "conv=notrunc 2>/dev/null || echo failed; rm /tmp/data",
            mib,
        )

    def digest(self, *, mib: int, at_mib: int = 0) -> str:
        """Read `mib` MiB of the disk from `at_mib` MiB on, past the guest's cache; return their
        SHA-256."""
        blocks, skip = mib * 1024 // BLOCK_KIB, at_mib * 1024 // BLOCK_KIB
        return self._digest(
            f"dd if={self.path} bs={BLOCK_KIB}k count={blocks} skip={skip} iflag=direct 2>/dev/null"
            " | sha256sum",
            mib,
        )

    def _digest(self, command: str, mib: int) -> str:
        said = self.guest.run(command, timeout=30 + mib * 2**20 / SLOWEST)
        return said.text.replace(" ", "").replace("-", "").strip()

    def written_sectors(self) -> int:
        """Return how many sectors of 512 bytes were written since the guest found the disk
        (Documentation/block/stat.rst)."""
        return int(self.guest.run(f"cat {self.sysfs}/stat").text.split()[6])


KIND = DeviceKind(
    role="nvme",
    identity=PciClass(0x0108),
    ready=f"test -e {_NAMESPACE}",
    emulation=Emulation("nvme", disk_bytes=256 << 20),
    sources=(LogWords, QueueFetch, LogPage, Completions, CommandData),
    also=frozenset({Ability.DISK}),
    rank=1,
)
