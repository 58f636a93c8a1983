"""The guest's program performs exactly the register accesses that the harness asks it for."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import cast

import pytest

from harness.guest import mmio
from harness.guest.console import Output
from harness.guest.guest import Guest
from harness.guest.mmio import (
    MEMORY,
    START,
    Mmio,
    add,
    inside,
    pause,
    read32,
    repeat,
    series,
    series32,
    until32,
    wait32,
    write32,
    write64,
)

BAR = "/sys/bus/pci/devices/0000:21:00.0/resource0"


class LocalGuest:
    """Run a guest's commands on this machine, with the guest's real program."""

    def __init__(self, tool: Path) -> None:
        self.environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
        self.asked: list[tuple[float, str]] = []

    def run(self, command: str, *, timeout: float = 30.0, what: str = "") -> Output:
        self.asked.append((timeout, what))
        ended = subprocess.run(
            ["sh", "-c", command], env=self.environment, stdout=subprocess.PIPE, check=True
        )
        return Output(command, ended.returncode, ended.stdout)


@pytest.fixture
def guest(tool: Path) -> Guest:
    return cast(Guest, LocalGuest(tool))


@pytest.fixture
def bar(tmp_path: Path) -> Path:
    """Return a file that stands for a BAR. Its name has characters that a shell must quote."""
    path = tmp_path / "a bar; it's"
    path.write_bytes(bytes(8192))
    return path


def test_what_is_written_is_read(guest: Guest, bar: Path) -> None:
    registers = Mmio(guest, str(bar))
    ops = (write64(0x1008, 0x1122334455667788), read32(0x1008), read32(0x100C))
    assert registers.run(*ops, pause(1), repeat(2)) == [0x55667788, 0x11223344] * 2
    assert bar.read_bytes()[0x1008:0x1010] == (0x1122334455667788).to_bytes(8, "little")
    assert registers.run(write32(0x1010, 0xF00D), until32(0x1010, 0xFF, 0x0D)) == []
    registers.write(0x1010, 7)
    assert registers.read(0x1010) == 7


def test_a_program_may_be_long(guest: Guest, bar: Path) -> None:
    values = [0x1000 + i for i in range(100)]
    writes = [write32(4 * i, value) for i, value in enumerate(values)]
    reads = [read32(4 * i) for i in range(100)]
    assert Mmio(guest, str(bar)).run(*writes, *reads) == values


def test_a_series_fills_a_queue(guest: Guest, bar: Path) -> None:
    """The series crosses a page; its values may count down."""
    Mmio(guest, str(bar)).run(series(0xF00, 0x40, 8, 0x1_0000_0000, -1), series(0x18, 0, 3, 5, 2))
    data = bar.read_bytes()
    words = {at: int.from_bytes(data[at : at + 8], "little") for at in range(0, 8192, 8)}
    written = {0xF00 + 0x40 * i: 0x1_0000_0000 - i for i in range(8)}
    assert {at: word for at, word in words.items() if word} == {0x18: 9, **written}


def test_a_series_of_32_bits_leaves_what_is_beside(guest: Guest, bar: Path) -> None:
    Mmio(guest, str(bar)).run(write32(0x104, 7), series32(0x100, 0, 5, 1, 1))
    assert bar.read_bytes()[0x100:0x108] == bytes((5, 0, 0, 0, 7, 0, 0, 0))


def test_adding_changes_each_word_in_its_place(guest: Guest, bar: Path) -> None:
    Mmio(guest, str(bar)).run(series(0x20, 0x40, 3, 0xFFFF_FFFF, 5), add(0x20, 0x40, 2, 0x10))
    data = bar.read_bytes()
    words = [int.from_bytes(data[at : at + 8], "little") for at in (0x20, 0x60, 0xA0)]
    assert words == [0x1_0000_000F, 0x1_0000_0014, 0x1_0000_0009]


def test_what_is_before_start_is_not_repeated(guest: Guest, bar: Path) -> None:
    once, again = series32(0, 0, 1, 1, 0), read32(0)
    assert Mmio(guest, str(bar)).run(read32(4), once, START, again, repeat(3)) == [0, 1, 1, 1]


def test_a_wait_that_may_expire_goes_on(guest: Guest, bar: Path) -> None:
    registers = Mmio(guest, str(bar))
    assert registers.run(wait32(0, 1, 1, seconds=0.05), read32(0)) == [0]
    assert registers.run(write32(0, 1), wait32(0, 1, 1, seconds=60), read32(0)) == [1]


def test_one_program_uses_several_files(guest: Guest, bar: Path, tmp_path: Path) -> None:
    """A repetition begins in the first file again."""
    other = tmp_path / "memory"
    other.write_bytes(bytes(4096))
    ops = (write32(0, 1), inside(str(other)), write32(0, 2), read32(0))
    back = (inside(str(bar)), read32(0), repeat(2))
    assert Mmio(guest, str(bar)).run(*ops, *back) == [2, 1, 2, 1]
    assert (bar.read_bytes()[0], other.read_bytes()[0]) == (1, 2)


def test_a_wait_that_expires_says_what_for(tool: Path, bar: Path) -> None:
    """What was read before is printed all the same."""
    bar.write_bytes(b"\x05" + bytes(4095))
    ops = (read32(0), until32(0, 0xFF, 7, seconds=0.05), read32(0))
    ended = subprocess.run(
        [tool, "mmio", bar, *ops], capture_output=True, text=True, check=False, timeout=4
    )
    assert (ended.returncode, ended.stdout) == (1, "0x5\n")
    assert ended.stderr == (
        "hil: until32:0x0&0xff=0x7@0.05: waited 0.05 s for 0x7 in the bits 0xff at 0x0 of "
        f"{bar}; last there: 0x5\n"
    )


def test_a_wait_may_be_long(guest: Guest, bar: Path) -> None:
    """A wait that is fulfilled ends then, whatever its deadline is."""
    assert Mmio(guest, str(bar)).run(until32(0, 1, 0, seconds=86400), timeout=1) == []


def test_a_command_may_take_long_and_have_a_name(guest: Guest, bar: Path) -> None:
    Mmio(guest, str(bar)).run(read32(0), timeout=90.0, what="edu: read 4 bytes at 0x0")
    assert cast(LocalGuest, guest).asked == [(90.0, "edu: read 4 bytes at 0x0")]


def test_a_command_is_one_line_of_shell() -> None:
    line = mmio.command(MEMORY, until32(0x44, 1 << 31, 0), write32(0x20, 5))
    assert shlex.split(line) == [
        *("hil", "mmio", "/dev/mem"),
        *("until32:0x44&0x80000000=0x0", "w32:0x20=0x5"),
    ]
    assert "&" not in line.replace("'until32:0x44&0x80000000=0x0'", "")


@pytest.mark.parametrize(
    ("command", "writes"),
    [
        (mmio.command(BAR, write32(0, 1)), True),
        (mmio.command("a bar", until32(0, 1, 0), write64(8, 1)), True),
        (f"for i in 1 2; do {mmio.command(BAR, write64(8, 1), read32(0))}; done", True),
        (mmio.command(BAR, read32(0), inside("a"), series(0, 8, 2, 1, 1)), True),
        (mmio.command(BAR, read32(0), until32(0, 1, 0)), False),
        ("dmesg | grep w32:", False),
    ],
)
def test_commands_that_write_are_known(command: str, writes: bool) -> None:
    assert mmio.writes(command) is writes


@pytest.mark.parametrize(
    "op",
    [
        *("w32:0", "r32:x", "r16:0", "w32:2=1", "nonsense", "until32:0=1", "until32:0&1=1@"),
        *("until32:0&1=1@x", "series:0,8=1,1", "series:0,4,2=1,1", "series:4,8,2=1,1"),
        *("map:0x1000=0+0x1000", "unmap:0x1000+0x1000"),
    ],
)
def test_nonsense_is_refused(tool: Path, bar: Path, op: str) -> None:
    """Nothing is performed then."""
    ended = subprocess.run(
        [tool, "mmio", bar, "w32:0=1", op], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"hil: {op}: ")
    assert bar.read_bytes() == bytes(8192)


def test_a_file_that_is_not_there_is_named(tool: Path, bar: Path) -> None:
    missing = bar.with_name("missing")
    ended = subprocess.run(
        [tool, "mmio", bar, f"in:{missing}"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (
        1,
        f"hil: in:{missing}: {missing}: No such file or directory\n",
    )
