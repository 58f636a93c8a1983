"""NVMe drives of any vendor: the guest's block devices, and digests of what is on them."""

from __future__ import annotations

from harness.devices.kind import DeviceKind, Emulation, PciClass
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest

#: Beneath the device's folder in sysfs.
_NAMESPACE = "nvme/nvme*/nvme*n1"
#: One request's bytes: several pages, so that it has a list of them (PRP), each translated.
BLOCK_KIB = 64
#: Bytes a second that a doubly emulated guest moves at the very least.
SLOWEST = 100_000


class Disk:
    """The first namespace of an NVMe that is plugged and driven. Raises HarnessError if it is
    not."""

    def __init__(self, guest: Guest, device: AssignedDevice) -> None:
        self.guest, self.device = guest, device
        self.sysfs = guest.run(f"ls -d {device.sysfs}/{_NAMESPACE}").text.strip()
        self.path = f"/dev/{self.sysfs.rsplit('/', 1)[1]}"

    def write_random(self, *, mib: int, at_mib: int = 0) -> str:
        """Write that much of something random, past the guest's cache; its SHA-256."""
        blocks, seek = mib * 1024 // BLOCK_KIB, at_mib * 1024 // BLOCK_KIB
        return self._digest(
            f"dd if=/dev/urandom bs={BLOCK_KIB}k count={blocks} 2>/dev/null | tee /tmp/data | "
            f"sha256sum; dd if=/tmp/data of={self.path} bs={BLOCK_KIB}k seek={seek} oflag=direct "
            "conv=notrunc 2>/dev/null || echo failed; rm /tmp/data",
            mib,
        )

    def digest(self, *, mib: int, at_mib: int = 0) -> str:
        """SHA-256 of that much of the disk, read past the guest's cache."""
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
        """Sectors of 512 bytes written since the guest found it (Documentation/block/stat.rst)."""
        return int(self.guest.run(f"cat {self.sysfs}/stat").text.split()[6])


KIND = DeviceKind(
    role="nvme",
    identity=PciClass(0x0108),
    ready=f"test -e {_NAMESPACE}",
    emulation=Emulation("nvme", disk_bytes=256 << 20),
)
