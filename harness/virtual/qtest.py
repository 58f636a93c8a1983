"""A client of QEMU's qtest socket, which reaches physical memory and devices from outside of the
machine, whether it runs or is stopped.

Each command is one line, and so is its response. QEMU serves one client at a time. Protocol:
system/qtest.c in QEMU.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from harness.errors import HarnessError, LabError
from harness.virtual.sockets import connect

_SECONDS = 10.0
_AT_ONCE_BYTES = 1024


class Qtest:
    """A connected qtest socket."""

    def __init__(self, sock: socket.socket, answers: TextIO) -> None:
        self._sock, self._answers = sock, answers

    @classmethod
    @contextlib.contextmanager
    def on(cls, path: Path) -> Iterator[Qtest]:
        """Connect to the socket `path` and yield the connection. Raises LabError."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_SECONDS)
            try:
                connect(sock, path)
            except OSError as problem:
                raise LabError(
                    f"no qtest socket at {path}: {problem}",
                    fix="check that the virtual host is up: `hil lab status`",
                ) from problem
            with sock.makefile("r", encoding="ascii") as answers:
                yield cls(sock, answers)

    def at_once(self, *commands: str) -> list[int]:
        """Carry out commands with nothing in between, and return the values that the reading ones
        among them read.

        QEMU takes all lines that are in its buffer (1024 bytes, qtest_can_read) at once, and holds
        its big lock from the first to the last: no CPU reaches a device meanwhile. Raises LabError
        when the socket fails or is closed, HarnessError when QEMU refuses a command or the commands
        are too long.
        """
        lines = "".join(f"{command}\n" for command in commands)
        if len(lines) > _AT_ONCE_BYTES:
            raise HarnessError(
                f"qtest: commands of {len(lines)} bytes; at most {_AT_ONCE_BYTES} fit at once"
            )
        try:
            self._sock.sendall(lines.encode())
            answers = [self._answers.readline().split() for _ in commands]
        except OSError as problem:
            raise LabError(f"qtest {commands[0]}: {problem}") from problem
        for command, answer in zip(commands, answers, strict=True):
            if not answer:
                raise LabError(f"qtest {command}: no answer")
            if answer[0] != "OK":
                raise HarnessError(f"qtest {command}: {' '.join(answer)}")
        return [int(answer[1], 16) for answer in answers if len(answer) > 1]

    def readl(self, address: int) -> int:
        return self.at_once(f"readl {address:#x}")[0]

    def writel(self, address: int, value: int) -> None:
        self.at_once(f"writel {address:#x} {value:#x}")

    def pulse(self, controller: str, line: int) -> None:
        """Raise and lower an input of an interrupt controller, which is given by its QOM path."""
        pin = f"set_irq_in {controller} unnamed-gpio-in {line}"
        self.at_once(f"{pin} 1", f"{pin} 0")
