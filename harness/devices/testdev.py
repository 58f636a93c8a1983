"""QEMU's iommu-testdev: DMA of up to 1 MiB, which it performs at once. The best source of floods.

Registers: docs/specs/iommu-testdev.rst and include/hw/misc/iommu-testdev.h in QEMU.
"""

from __future__ import annotations

from harness.devices.dma import Direction, Dma
from harness.devices.kind import DeviceKind, Emulation, PciId
from harness.devices.source import FaultSource, again
from harness.errors import HarnessError, ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest

_TRIGGER, _IOVA_LOW, _IOVA_HIGH, _LENGTH = 0x00, 0x04, 0x08, 0x0C
_RESULT, _DOORBELL, _GPA_LOW, _GPA_HIGH = 0x10, 0x14, 0x1C, 0x20
#: The emulator allocates two buffers of this size and holds its lock meanwhile.
_LONGEST = 1 << 20


class IommuTestdev(FaultSource):
    """An iommu-testdev. It only writes: its "read back" goes past the IOMMU. A DMA that faults
    raises an event for every four bytes. Raises ProductError for a device that is none."""

    def __init__(self, guest: Guest, assigned: AssignedDevice) -> None:
        super().__init__(guest, assigned)
        # It has no identification register; a BAR that does not answer reads as all ones.
        if self._values(self._mmio(f"r32:{_TRIGGER:#x}")) != [0]:
            raise ProductError(f"the device at {assigned.guest_bdf} is no iommu-testdev")

    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0) -> str:
        if dma.direction is not Direction.WRITE:
            raise HarnessError("iommu-testdev cannot read through the IOMMU; take edu")
        if dma.length > _LONGEST:
            raise HarnessError(f"iommu-testdev: {dma.length} bytes, at most {_LONGEST}")
        return self._mmio(
            f"w32:{_IOVA_LOW:#x}={dma.iova & 0xFFFF_FFFF:#x}",
            f"w32:{_IOVA_HIGH:#x}={dma.iova >> 32:#x}",
            f"w32:{_LENGTH:#x}={dma.length}",
            f"w32:{_GPA_LOW:#x}=0",
            f"w32:{_GPA_HIGH:#x}=0",
            f"w32:{_DOORBELL:#x}=1",
            f"r32:{_TRIGGER:#x}",
            f"r32:{_RESULT:#x}",
            *again(times, pause_ms),
        )


KIND = DeviceKind(
    role="iommu-testdev",
    identity=PciId(0x1B36, 0x0005),
    # It has no migration state.
    emulation=Emulation("iommu-testdev", saved=False),
    source=IommuTestdev,
)
