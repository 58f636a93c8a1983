"""Have a guest read and write registers and memory itself, with its program `hil mmio`.

    Mmio(guest).run(write32(gbpa, value), until32(gbpa, GBPA_UPDATE, 0))

The operations are those of payload/guest-tool.c, performed in order, each access aligned to its
width. A `file` is one that a guest can map: /dev/mem, whose offsets are physical addresses, or a
BAR's /sys/bus/pci/devices/…/resourceN. `harness.guest.vfio` performs the same operations on a
device that vfio-pci drives.
"""

from __future__ import annotations

import re
import shlex
from typing import NewType

from harness.guest.guest import Guest

MEMORY = "/dev/mem"

#: One operation as `hil mmio` and `hil vfio` take it.
Op = NewType("Op", str)

#: The operation after which `repeat` begins.
START = Op("start")

_WRITES = re.compile(r"\bhil (?:mmio|vfio) .*\b(?:w32|w64|series|series32|add):")


def read32(at: int) -> Op:
    """Return the operation that reads 32 bits at an offset."""
    return Op(f"r32:{at:#x}")


def read64(at: int) -> Op:
    """Return the operation that reads 64 bits at an offset."""
    return Op(f"r64:{at:#x}")


def write32(at: int, value: int) -> Op:
    """Return the operation that writes 32 bits at an offset."""
    return Op(f"w32:{at:#x}={value:#x}")


def write64(at: int, value: int) -> Op:
    """Return the operation that writes 64 bits at an offset."""
    return Op(f"w64:{at:#x}={value:#x}")


def series(at: int, stride: int, count: int, value: int, step: int) -> Op:
    """Return the operation that writes 64 bits `count` times: the i-th time, from 0, `value` + i ×
    `step` at the offset `at` + i × `stride` bytes."""
    return Op(f"series:{at:#x},{stride:#x},{count}={value:#x},{step:#x}")


def series32(at: int, stride: int, count: int, value: int, step: int) -> Op:
    """Return the operation that writes 32 bits `count` times, as `series`."""
    return Op(f"series32:{at:#x},{stride:#x},{count}={value:#x},{step:#x}")


def until32(at: int, mask: int, value: int, *, seconds: float | None = None) -> Op:
    """Return the operation that waits until the bits in `mask` of the 32 bits at an offset are
    `value`. After `seconds`, or else five, the command fails and prints the last value."""
    deadline = "" if seconds is None else f"@{seconds:g}"
    return Op(f"until32:{at:#x}&{mask:#x}={value:#x}{deadline}")


def add(at: int, stride: int, count: int, step: int) -> Op:
    """Return the operation that adds `step` to 64 bits `count` times, at the offset `at` + i ×
    `stride` bytes."""
    return Op(f"add:{at:#x},{stride:#x},{count}={step:#x}")


def wait32(at: int, mask: int, value: int, *, seconds: float) -> Op:
    """Return the operation that waits as `until32`, but goes on after `seconds`."""
    return Op(f"try32:{at:#x}&{mask:#x}={value:#x}@{seconds:g}")


def inside(file: str) -> Op:
    """Return the operation after which all operations are on another file, up to the next of its
    kind."""
    return Op(f"in:{file}")


def pause(milliseconds: int) -> Op:
    """Return the operation that waits for a time."""
    return Op(f"pause:{milliseconds}")


def repeat(times: int) -> Op:
    """Return the operation that repeats all operations before it, from START on if there is one,
    so that each is performed `times` times in all."""
    return Op(f"repeat:{times}")


def command(file: str, *ops: Op) -> str:
    """Return the guest's shell command that performs operations on a file."""
    return shlex.join(["hil", "mmio", file, *ops])


def writes(shell: str) -> bool:
    """Return whether a shell command contains a `hil mmio` or `hil vfio` that writes."""
    return _WRITES.search(shell) is not None


class Mmio:
    """A guest's file that it reads and writes by mapping it. Errors are those of Guest.run."""

    def __init__(self, guest: Guest, file: str = MEMORY) -> None:
        self.guest, self.file = guest, file

    def run(self, *ops: Op, timeout: float = 30.0, what: str = "") -> list[int]:
        """Perform operations within `timeout` seconds; return the values that were read, in order.
        `what` is the purpose, for reports."""
        said = self.guest.run(command(self.file, *ops), timeout=timeout, what=what)
        return [int(word, 16) for word in said.text.split()]

    def read(self, at: int) -> int:
        """Return the 32 bits at an offset."""
        return self.run(read32(at))[0]

    def write(self, at: int, value: int) -> None:
        """Write 32 bits at an offset."""
        self.run(write32(at, value))
