"""QEMU's qtest socket: physical memory and devices, from outside, running or not.

Protocol: system/qtest.c in QEMU; one line a command, one a response. One client at a time.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from harness.errors import HarnessError, LabError

_SECONDS = 10.0


class Qtest:
    """A connected qtest socket."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @classmethod
    @contextlib.contextmanager
    def on(cls, path: Path) -> Iterator[Qtest]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_SECONDS)
            try:
                sock.connect(str(path))
            except OSError as problem:
                raise LabError(f"no qtest socket at {path}: {problem}") from problem
            with sock.makefile("rw") as stream:
                yield cls(stream)

    def _ask(self, command: str) -> list[str]:
        try:
            self._stream.write(command + "\n")
            self._stream.flush()
            answer = self._stream.readline().split()
        except OSError as problem:
            raise LabError(f"qtest {command}: {problem}") from problem
        if not answer or answer[0] != "OK":
            raise HarnessError(f"qtest {command}: {' '.join(answer) or 'no answer'}")
        return answer[1:]

    def readl(self, address: int) -> int:
        return int(self._ask(f"readl {address:#x}")[0], 16)

    def writel(self, address: int, value: int) -> None:
        self._ask(f"writel {address:#x} {value:#x}")
