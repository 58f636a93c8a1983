"""QEMU's educational device (edu), a fault source for DMA of up to 4 KiB in both directions.

Registers: docs/specs/edu.rst and hw/misc/edu.c in QEMU.
"""

from __future__ import annotations

import secrets
from functools import cached_property

from harness.devices.dma import Direction, Dma
from harness.devices.kind import DeviceKind, Emulation, PciId
from harness.devices.source import RegisterSource, again, prepared
from harness.errors import ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, command, read64, until32, write64
from harness.guest.pages import pin_page
from harness.host.ability import Ability

_IDENTIFICATION, _SRC, _DST, _COUNT, _COMMAND = 0x00, 0x80, 0x88, 0x90, 0x98
_BUFFER, _BUFFER_BYTES = 0x40000, 4096
_RUN, _TO_MEMORY = 1, 2
_IDENTITY = 0x0100_00ED


class Edu(RegisterSource):
    """An edu of a guest. It performs a DMA 100 ms after the command. A DMA that faults raises an
    event for every four bytes.

    A DMA beyond its buffer would corrupt the emulator's memory, so lengths are checked. Raises
    ProductError for a device that is not an edu.
    """

    way = "dma"
    can = frozenset({Ability.READ, Ability.WRITE, Ability.EXACT_LENGTH, Ability.REACH})
    longest = _BUFFER_BYTES

    def __init__(self, guest: Guest, assigned: AssignedDevice) -> None:
        super().__init__(guest, assigned)
        if self.bar.read(_IDENTIFICATION) != _IDENTITY:
            raise ProductError(f"the device at {assigned.guest_bdf} is not an edu")

    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0, delay_ms: int = 0) -> str:
        """Return the guest's shell command as FaultSource.command says. Each DMA takes 100 ms."""
        self.check(dma)
        write = dma.direction is Direction.WRITE
        source, target = (_BUFFER, dma.iova) if write else (dma.iova, _BUFFER)
        return command(
            self.bar.file,
            *prepared(_IDENTIFICATION, delay_ms),
            write64(_SRC, source),
            write64(_DST, target),
            write64(_COUNT, dma.length),
            write64(_COMMAND, _RUN | (_TO_MEMORY if write else 0)),
            until32(_COMMAND, _RUN, 0),
            *again(times, pause_ms),
        )

    def reaches(self, offset: int = 0) -> bool:
        """Return whether the device reads and writes the guest's memory: it copies a random word
        from one page to another."""
        word, source, target = secrets.randbits(64), *self._pages
        memory = Mmio(self.guest)
        memory.run(write64(source, word), write64(target, ~word & (1 << 64) - 1))
        self.perform(Dma(source + offset, 8, Direction.READ))
        self.perform(Dma(target + offset, 8, Direction.WRITE))
        return memory.run(read64(target)) == [word]

    @cached_property
    def _pages(self) -> tuple[int, int]:
        return pin_page(self.guest), pin_page(self.guest)


KIND = DeviceKind(
    role="edu",
    identity=PciId(0x1234, 0x11E8),
    # The default dma_mask cuts addresses to 28 bits. QEMU has no migration state for the model.
    emulation=Emulation("edu", {"dma_mask": "0xffffffffffffffff"}, saved=False),
    sources=(Edu,),
)
