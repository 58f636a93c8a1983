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
    Mmio,
    pause,
    read32,
    repeat,
    until32,
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
        (mmio.command(BAR, read32(0), until32(0, 1, 0)), False),
        ("dmesg | grep w32:", False),
    ],
)
def test_commands_that_write_are_known(command: str, writes: bool) -> None:
    assert mmio.writes(command) is writes


@pytest.mark.parametrize("op", ["w32:0", "r32:x", "r16:0", "w32:2=1", "nonsense", "until32:0=1"])
def test_nonsense_is_refused(tool: Path, bar: Path, op: str) -> None:
    ended = subprocess.run([tool, "mmio", bar, op], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("hil: ")
