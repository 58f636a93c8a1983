"""QEMU's iommu-testdev, a fault source for DMA of up to 1 MiB, which it performs at once. It is the
best source of floods.

Registers: docs/specs/iommu-testdev.rst and include/hw/misc/iommu-testdev.h in QEMU.
"""

from __future__ import annotations

from harness.devices.dma import Dma
from harness.devices.kind import DeviceKind, Emulation, PciId
from harness.devices.source import RegisterSource, again, prepared
from harness.errors import ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.mmio import command, read32, write32
from harness.host.ability import Ability

_TRIGGER, _IOVA_LOW, _IOVA_HIGH, _LENGTH = 0x00, 0x04, 0x08, 0x0C
_RESULT, _DOORBELL, _GPA_LOW, _GPA_HIGH = 0x10, 0x14, 0x1C, 0x20
#: In bytes. The emulator allocates two buffers of the DMA's length and holds its lock meanwhile.
_LONGEST = 1 << 20


class IommuTestdev(RegisterSource):
    """An iommu-testdev of a guest. It only writes: its "read back" bypasses the IOMMU. A DMA that
    faults raises an event for every four bytes. Raises ProductError for a device that is not an
    iommu-testdev."""

    way = "dma"
    can = frozenset({Ability.WRITE, Ability.EXACT_LENGTH, Ability.FLOOD})
    longest = _LONGEST

    def __init__(self, guest: Guest, assigned: AssignedDevice) -> None:
        super().__init__(guest, assigned)
        # The device has no identification register. A BAR that does not answer reads as all ones.
        if self.bar.read(_TRIGGER) != 0:
            raise ProductError(f"the device at {assigned.guest_bdf} is not an iommu-testdev")

    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0, delay_ms: int = 0) -> str:
        """Return the guest's shell command as FaultSource.command says."""
        self.check(dma)
        return command(
            self.bar.file,
            *prepared(_RESULT, delay_ms),
            write32(_IOVA_LOW, dma.iova & 0xFFFF_FFFF),
            write32(_IOVA_HIGH, dma.iova >> 32),
            write32(_LENGTH, dma.length),
            write32(_GPA_LOW, 0),
            write32(_GPA_HIGH, 0),
            write32(_DOORBELL, 1),
            read32(_TRIGGER),
            read32(_RESULT),
            *again(times, pause_ms),
        )


KIND = DeviceKind(
    role="iommu-testdev",
    identity=PciId(0x1B36, 0x0005),
    # QEMU has no migration state for the model.
    emulation=Emulation("iommu-testdev", saved=False),
    sources=(IommuTestdev,),
)
