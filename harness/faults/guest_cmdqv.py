"""Use a guest's CMDQV without its driver: its registers, and commands that the driver never
issued."""

from __future__ import annotations

import re

from harness.errors import ProductError
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, Op, until32, write32, write64
from harness.smmu.cmdqv import (
    ALLOCATED,
    ENABLE,
    KIB64,
    VCMDQ_PAGE0,
    VCMDQ_PAGE1,
    VCMDQ_STRIDE,
    VINTF_PAGES,
    Config,
    Page0,
    Page1,
    vcmdq_ring,
)
from harness.smmu.commands import Command, decode, words_at
from harness.smmu.registers import CMDQ_CONS_RD
from harness.smmu.ring import Ring


class GuestCmdqv:
    """The CMDQV number `index` of a guest. Raises ProductError if the guest does not have it."""

    def __init__(self, guest: Guest, index: int = 0) -> None:
        self._guest, self._memory = guest, Mmio(guest)
        windows = re.findall(
            r"^ *([0-9a-f]+)-[0-9a-f]+ : NVDA200C", guest.run("cat /proc/iomem").text, re.MULTILINE
        )
        if index >= len(windows):
            raise ProductError(f"guest {guest.name} has {len(windows)} CMDQVs")
        self.base = int(windows[index], 16)

    # -- registers -------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """Return the 32-bit register at an offset of the CMDQV, as the guest reads it."""
        return self._memory.read(self.base + offset)

    def write(self, offset: int, value: int) -> None:
        """Write the 32-bit register at an offset of the CMDQV."""
        self._memory.write(self.base + offset, value)

    @staticmethod
    def page0(lvcmdq: int, register: Page0) -> int:
        """Return the offset of an LVCMDQ's register on the page that the hardware serves itself."""
        return VINTF_PAGES + lvcmdq * VCMDQ_STRIDE + register

    @staticmethod
    def trapped(lvcmdq: int, register: Page0) -> int:
        """Return the offset of an LVCMDQ's register on the page that QEMU serves. It shows what
        QEMU knows of the queue while no hardware queue is behind it."""
        return VCMDQ_PAGE0 + lvcmdq * VCMDQ_STRIDE + register

    # -- life of a queue -------------------------------------------------------------------

    def ring(self, lvcmdq: int) -> Ring:
        """Return the ring of a queue, from its BASE."""
        base = VCMDQ_PAGE1 + lvcmdq * VCMDQ_STRIDE + Page1.BASE
        low, high = self.read(base), self.read(base + 4)
        return vcmdq_ring(high << 32 | low)

    def map(self, lvcmdq: int) -> None:
        """Give a queue to the virtual interface. Hardware demands ascending order."""
        at = Config.CMDQ_ALLOC + 4 * lvcmdq
        self.write(at, self.read(at) | ALLOCATED)

    def set_up(self, lvcmdq: int, ring: Ring) -> None:
        """Set a queue up with an empty ring of its own, and enable it, as the driver does. The
        driver cannot use it afterwards."""
        page0 = self.base + self.page0(lvcmdq, Page0.CONS)
        page1 = self.base + VINTF_PAGES + KIB64 + lvcmdq * VCMDQ_STRIDE
        self._memory.run(
            *self._turned(lvcmdq, 0),
            *(write32(page0 + one, 0) for one in (Page0.PROD, Page0.CONS)),
            write64(page1 + Page1.BASE, ring.base),
            write32(page0 + Page0.CONFIG, ENABLE),
        )

    def release(self, lvcmdq: int) -> None:
        """Disable a queue, forget its ring, and take it from the virtual interface. Hardware
        demands descending order."""
        self.write(self.page0(lvcmdq, Page0.CONFIG), 0)
        at = Config.CMDQ_ALLOC + 4 * lvcmdq
        self.write(at, self.read(at) & ~ALLOCATED)
        base = self.base + VCMDQ_PAGE1 + lvcmdq * VCMDQ_STRIDE + Page1.BASE
        self._memory.run(write64(base, 0))

    # -- commands --------------------------------------------------------------------------

    def give(self, lvcmdq: int, *commands: Command) -> int:
        """Append commands after the driver's last one, and return the index of the first.

        The driver must not use the queue until the caller has called `take_back`.
        """
        ring, register = self.ring(lvcmdq), self.page0(lvcmdq, Page0.PROD)
        prod = self.read(register)
        self._memory.run(
            *(write64(at, word) for at, word in words_at(ring, prod, commands)),
            write32(self.base + register, ring.after(prod, len(commands))),
        )
        return prod

    def given(self, lvcmdq: int, prod: int) -> list[Command]:
        """Return the commands that were put into a queue since its PROD was `prod`. Raises
        ValueError if they were more than it holds."""
        queue, now = self._guest.event_queue(), self.read(self.page0(lvcmdq, Page0.PROD))
        ranges = self.ring(lvcmdq).ranges(prod, now)
        return [one for at, size in ranges for one in decode(queue.memory(at, size))]

    def wait_done(self, lvcmdq: int) -> None:
        """Wait until the hardware has read all commands, five seconds at most."""
        prod = self.read(self.page0(lvcmdq, Page0.PROD))
        cons = self.base + self.page0(lvcmdq, Page0.CONS)
        self._memory.run(until32(cons, CMDQ_CONS_RD, prod))

    def take_back(self, lvcmdq: int, index: int) -> None:
        """Set the queue back to `index`, where the driver left it: it is disabled meanwhile, and
        enabled when this returns."""
        indices = (self.base + self.page0(lvcmdq, one) for one in (Page0.CONS, Page0.PROD))
        self._memory.run(
            *self._turned(lvcmdq, 0),
            *(write32(at, index) for at in indices),
            *self._turned(lvcmdq, ENABLE),
        )

    def _turned(self, lvcmdq: int, value: int) -> tuple[Op, Op]:
        """Return the operations that enable a queue (ENABLE) or disable it (0) and wait until it
        is, which hardware takes its time for."""
        config, status = (
            self.base + self.page0(lvcmdq, one) for one in (Page0.CONFIG, Page0.STATUS)
        )
        return write32(config, value), until32(status, ENABLE, value)

    def carry_out(self, lvcmdq: int, *commands: Command) -> None:
        """Make the hardware execute commands, then set the queue back to where the driver left
        it."""
        index = self.give(lvcmdq, *commands)
        self.wait_done(lvcmdq)
        self.take_back(lvcmdq, index)
