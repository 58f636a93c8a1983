"""A guest's CMDQV, driven past its driver: registers, and commands that the driver never gave."""

from __future__ import annotations

import re
import shlex

from harness.errors import ProductError
from harness.guest.guest import Guest
from harness.smmu.cmdqv import (
    COMMAND_BYTES,
    ENABLE,
    VCMDQ_PAGE1,
    VCMDQ_STRIDE,
    VINTF_PAGES,
    Command,
    Opcode,
    Page0,
    Page1,
)

_ADDRESS, _LOG2SIZE = ((1 << 48) - 1) & ~0x1F, 0x1F


def sync() -> Command:
    """CMD_SYNC, with no signal."""
    return (Opcode.SYNC, 0)


def tlbi_nh_asid(asid: int) -> Command:
    """CMD_TLBI_NH_ASID; the hardware puts the VMID in."""
    return (Opcode.TLBI_NH_ASID | asid << 48, 0)


def atc_inv(sid: int) -> Command:
    """CMD_ATC_INV of everything a StreamID has."""
    return (Opcode.ATC_INV | sid << 32, 0x3F)


class GuestCmdqv:
    """The CMDQV of one SMMU of a guest. Raises ProductError when the guest does not have it."""

    def __init__(self, guest: Guest, index: int = 0) -> None:
        self.guest = guest
        windows = re.findall(
            r"^ *([0-9a-f]+)-[0-9a-f]+ : NVDA200C", guest.run("cat /proc/iomem").text, re.MULTILINE
        )
        if index >= len(windows):
            raise ProductError(f"guest {guest.name} has {len(windows)} CMDQVs")
        self.base = int(windows[index], 16)

    # -- registers -------------------------------------------------------------------------

    def _mmio(self, *ops: str) -> list[int]:
        said = self.guest.run(shlex.join(["hil", "mmio", "/dev/mem", *ops]))
        return [int(word, 16) for word in said.text.split()]

    def read(self, offset: int) -> int:
        """A register of the window, by the guest."""
        return self._mmio(f"r32:{self.base + offset:#x}")[0]

    def write(self, offset: int, value: int) -> None:
        self._mmio(f"w32:{self.base + offset:#x}={value:#x}")

    @staticmethod
    def page0(lvcmdq: int, register: Page0) -> int:
        """Offset of a register on the page that reaches the hardware."""
        return VINTF_PAGES + lvcmdq * VCMDQ_STRIDE + register

    # -- commands --------------------------------------------------------------------------

    def _queue(self, lvcmdq: int) -> tuple[int, int]:
        """Address and number of entries."""
        base = VCMDQ_PAGE1 + lvcmdq * VCMDQ_STRIDE + Page1.BASE
        low, high = self.read(base), self.read(base + 4)
        return (high << 32 | low) & _ADDRESS, 1 << (low & _LOG2SIZE)

    def give(self, lvcmdq: int, *commands: Command) -> int:
        """Put commands behind the driver's last; the index of the first. The driver must not use
        the queue until `take_back`, which the caller owes it."""
        address, entries = self._queue(lvcmdq)
        prod = self.read(self.page0(lvcmdq, Page0.PROD))
        ops = []
        for number, words in enumerate(commands):
            entry = address + (prod + number) % entries * COMMAND_BYTES
            ops += [f"w64:{entry + 8 * at:#x}={word:#x}" for at, word in enumerate(words)]
        after = (prod + len(commands)) % (2 * entries)
        ops.append(f"w32:{self.base + self.page0(lvcmdq, Page0.PROD):#x}={after:#x}")
        self._mmio(*ops)
        return prod

    def wait_done(self, lvcmdq: int) -> None:
        """Until the hardware has taken all commands: five seconds at most."""
        prod = self.read(self.page0(lvcmdq, Page0.PROD))
        cons = self.base + self.page0(lvcmdq, Page0.CONS)
        self._mmio(f"until32:{cons:#x}&0xfffff={prod:#x}")

    def take_back(self, lvcmdq: int, index: int) -> None:
        """Have the queue where the driver left it: disabled, set back, enabled."""
        registers = ((Page0.CONFIG, 0), (Page0.CONS, index), (Page0.PROD, index))
        writes = [*registers, (Page0.CONFIG, ENABLE)]
        self._mmio(
            *(f"w32:{self.base + self.page0(lvcmdq, at):#x}={value:#x}" for at, value in writes)
        )

    def carry_out(self, lvcmdq: int, *commands: Command) -> None:
        """Have the hardware do commands, and leave no trace in the queue."""
        index = self.give(lvcmdq, *commands)
        self.wait_done(lvcmdq)
        self.take_back(lvcmdq, index)
