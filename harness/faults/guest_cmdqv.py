"""A guest's CMDQV, driven past its driver: registers, and commands that the driver never gave."""

from __future__ import annotations

import re

from harness.errors import ProductError
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, until32, write32, write64
from harness.smmu.cmdqv import (
    ENABLE,
    VCMDQ_PAGE1,
    VCMDQ_STRIDE,
    VINTF_PAGES,
    Page0,
    Page1,
    vcmdq_ring,
)
from harness.smmu.commands import Command, words_at
from harness.smmu.registers import CMDQ_CONS_RD
from harness.smmu.ring import Ring


class GuestCmdqv:
    """The CMDQV of one SMMU of a guest. Raises ProductError when the guest does not have it."""

    def __init__(self, guest: Guest, index: int = 0) -> None:
        self._memory = Mmio(guest)
        windows = re.findall(
            r"^ *([0-9a-f]+)-[0-9a-f]+ : NVDA200C", guest.run("cat /proc/iomem").text, re.MULTILINE
        )
        if index >= len(windows):
            raise ProductError(f"guest {guest.name} has {len(windows)} CMDQVs")
        self.base = int(windows[index], 16)

    # -- registers -------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """Return a register of the window, as the guest reads it."""
        return self._memory.read(self.base + offset)

    def write(self, offset: int, value: int) -> None:
        self._memory.write(self.base + offset, value)

    @staticmethod
    def page0(lvcmdq: int, register: Page0) -> int:
        """Offset of a register on the page that reaches the hardware."""
        return VINTF_PAGES + lvcmdq * VCMDQ_STRIDE + register

    # -- commands --------------------------------------------------------------------------

    def _ring(self, lvcmdq: int) -> Ring:
        base = VCMDQ_PAGE1 + lvcmdq * VCMDQ_STRIDE + Page1.BASE
        low, high = self.read(base), self.read(base + 4)
        return vcmdq_ring(high << 32 | low)

    def give(self, lvcmdq: int, *commands: Command) -> int:
        """Put commands behind the driver's last; the index of the first. The driver must not use
        the queue until `take_back`, which the caller owes it."""
        ring, register = self._ring(lvcmdq), self.page0(lvcmdq, Page0.PROD)
        prod = self.read(register)
        self._memory.run(
            *(write64(at, word) for at, word in words_at(ring, prod, commands)),
            write32(self.base + register, ring.after(prod, len(commands))),
        )
        return prod

    def wait_done(self, lvcmdq: int) -> None:
        """Until the hardware has taken all commands: five seconds at most."""
        prod = self.read(self.page0(lvcmdq, Page0.PROD))
        cons = self.base + self.page0(lvcmdq, Page0.CONS)
        self._memory.run(until32(cons, CMDQ_CONS_RD, prod))

    def take_back(self, lvcmdq: int, index: int) -> None:
        """Have the queue where the driver left it: disabled, set back, enabled."""
        registers = ((Page0.CONFIG, 0), (Page0.CONS, index), (Page0.PROD, index))
        writes = [*registers, (Page0.CONFIG, ENABLE)]
        self._memory.run(
            *(write32(self.base + self.page0(lvcmdq, at), value) for at, value in writes)
        )

    def carry_out(self, lvcmdq: int, *commands: Command) -> None:
        """Have the hardware do commands, and leave no trace in the queue."""
        index = self.give(lvcmdq, *commands)
        self.wait_done(lvcmdq)
        self.take_back(lvcmdq, index)
