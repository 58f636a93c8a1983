"""QEMU's educational device: DMA of up to 4 KiB in both directions.

Registers: docs/specs/edu.rst and hw/misc/edu.c in QEMU.
"""

from __future__ import annotations

from harness.devices.dma import Direction, Dma
from harness.devices.kind import DeviceKind, Emulation, PciId
from harness.devices.source import FaultSource, again
from harness.errors import HarnessError, ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.mmio import Op, command, until32, write64

_IDENTIFICATION, _SRC, _DST, _COUNT, _COMMAND = 0x00, 0x80, 0x88, 0x90, 0x98
_BUFFER, _BUFFER_BYTES = 0x40000, 4096
_RUN, _TO_MEMORY = 1, 2
_IDENTITY = 0x0100_00ED


class Edu(FaultSource):
    """An edu. Its DMA runs 100 ms after the command; one that faults raises an event for every four
    bytes.

    An address outside its buffer would corrupt the emulator, so lengths are checked here. Raises
    ProductError for a device that is none.
    """

    def __init__(self, guest: Guest, assigned: AssignedDevice) -> None:
        super().__init__(guest, assigned)
        if self.bar.read(_IDENTIFICATION) != _IDENTITY:
            raise ProductError(f"the device at {assigned.guest_bdf} is no edu")

    def _start(self, dma: Dma) -> list[Op]:
        if dma.length > _BUFFER_BYTES:
            raise HarnessError(f"edu moves {_BUFFER_BYTES} bytes at most, not {dma.length}")
        write = dma.direction is Direction.WRITE
        source, target = (_BUFFER, dma.iova) if write else (dma.iova, _BUFFER)
        return [
            write64(_SRC, source),
            write64(_DST, target),
            write64(_COUNT, dma.length),
            write64(_COMMAND, _RUN | (_TO_MEMORY if write else 0)),
        ]

    def start_command(self, dma: Dma) -> str:
        """Return the guest's command line that tells it to begin, and does not wait."""
        return command(self.bar.file, *self._start(dma))

    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0) -> str:
        through = until32(_COMMAND, _RUN, 0)
        return command(self.bar.file, *self._start(dma), through, *again(times, pause_ms))


KIND = DeviceKind(
    role="edu",
    identity=PciId(0x1234, 0x11E8),
    # Full reach: the default mask folds addresses into 28 bits. It has no migration state.
    emulation=Emulation("edu", {"dma_mask": "0xffffffffffffffff"}, saved=False),
    source=Edu,
)
