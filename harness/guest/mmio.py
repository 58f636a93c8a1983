"""Reads and writes of registers and memory that a guest performs itself, by its `hil mmio`.

    Mmio(guest).run(write32(gbpa, value), until32(gbpa, GBPA_UPDATE, 0))

The operations are those of payload/guest-tool.c: done in order, 64 at most, each access aligned to
its width. A `file` is what a guest can map: /dev/mem, whose offsets are physical addresses, or a
BAR's /sys/bus/pci/devices/…/resourceN.
"""

from __future__ import annotations

import re
import shlex
from typing import NewType

from harness.guest.guest import Guest

MEMORY = "/dev/mem"

#: One operation as `hil mmio` takes it.
Op = NewType("Op", str)

_WRITES = re.compile(r"\bhil mmio \S+ .*\bw(?:32|64):")


def read32(at: int) -> Op:
    return Op(f"r32:{at:#x}")


def write32(at: int, value: int) -> Op:
    return Op(f"w32:{at:#x}={value:#x}")


def write64(at: int, value: int) -> Op:
    return Op(f"w64:{at:#x}={value:#x}")


def until32(at: int, mask: int, value: int) -> Op:
    """Wait until a word's bits in `mask` are `value`; the command fails after five seconds."""
    return Op(f"until32:{at:#x}&{mask:#x}={value:#x}")


def pause(milliseconds: int) -> Op:
    return Op(f"pause:{milliseconds}")


def repeat(times: int) -> Op:
    """Do all operations before this one so many times in all."""
    return Op(f"repeat:{times}")


def command(file: str, *ops: Op) -> str:
    """Return the shell command of a guest that performs operations on a file."""
    return shlex.join(["hil", "mmio", file, *ops])


def writes(shell: str) -> bool:
    """Tell whether a shell command has such a command in it, and that one writes."""
    return _WRITES.search(shell) is not None


class Mmio:
    """A file of a guest, to be read and written. All errors are those of Guest.run."""

    def __init__(self, guest: Guest, file: str = MEMORY) -> None:
        self.guest, self.file = guest, file

    def run(self, *ops: Op, timeout: float = 30.0, what: str = "") -> list[int]:
        """Perform operations within `timeout` seconds; return what was read, in order. `what` is
        what it is for, for reports."""
        said = self.guest.run(command(self.file, *ops), timeout=timeout, what=what)
        return [int(word, 16) for word in said.text.split()]

    def read(self, at: int) -> int:
        """Return a 32-bit word."""
        return self.run(read32(at))[0]

    def write(self, at: int, value: int) -> None:
        """Write a 32-bit word."""
        self.run(write32(at, value))
