"""QEMU's educational device (edu), a fault source for DMA of up to 4 KiB in both directions.

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
    """An edu of a guest. It performs a DMA 100 ms after the command. A DMA that faults raises an
    event for every four bytes.

    A DMA beyond its buffer would corrupt the emulator's memory, so lengths are checked here. Raises
    ProductError for a device that is not an edu.
    """

    def __init__(self, guest: Guest, assigned: AssignedDevice) -> None:
        super().__init__(guest, assigned)
        if self.bar.read(_IDENTIFICATION) != _IDENTITY:
            raise ProductError(f"the device at {assigned.guest_bdf} is not an edu")

    def _start(self, dma: Dma) -> list[Op]:
        if dma.length > _BUFFER_BYTES:
            raise HarnessError(
                f"an edu cannot move {dma.length} bytes at once",
                fix=f"choose at most {_BUFFER_BYTES} bytes",
            )
        write = dma.direction is Direction.WRITE
        source, target = (_BUFFER, dma.iova) if write else (dma.iova, _BUFFER)
        return [
            write64(_SRC, source),
            write64(_DST, target),
            write64(_COUNT, dma.length),
            write64(_COMMAND, _RUN | (_TO_MEMORY if write else 0)),
        ]

    def start_command(self, dma: Dma) -> str:
        """Return the guest's shell command that starts the DMA and does not wait for its end."""
        return command(self.bar.file, *self._start(dma))

    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0) -> str:
        """Return the guest's shell command as FaultSource.command says. Each DMA takes 100 ms."""
        through = until32(_COMMAND, _RUN, 0)
        return command(self.bar.file, *self._start(dma), through, *again(times, pause_ms))


KIND = DeviceKind(
    role="edu",
    identity=PciId(0x1234, 0x11E8),
    # The default dma_mask cuts addresses to 28 bits. QEMU has no migration state for the model.
    emulation=Emulation("edu", {"dma_mask": "0xffffffffffffffff"}, saved=False),
    source=Edu,
)
