"""A console that another program writes to a file: the UART of a virtual host, whose QEMU does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

from harness.console.source import ConsoleStream

_CHUNK = 1 << 16


@dataclass(frozen=True)
class FileConsole:
    """What is written to the end of a file from now on, and to each file that takes its place, as
    at a boot. There may be no file yet."""

    path: Path
    lag: ClassVar[float] = 0.0

    @contextmanager
    def open(self) -> Iterator[ConsoleStream]:
        with ExitStack() as opened:
            stream = _FileStream(self.path, opened)
            stream.skip()
            yield stream


class _FileStream:
    def __init__(self, path: Path, opened: ExitStack) -> None:
        self._path, self._opened = path, opened
        self._file: IO[bytes] | None = None

    def skip(self) -> None:
        """Leave out what is there already."""
        other = self._other()
        if other:
            self._take(other)
            other.seek(0, os.SEEK_END)

    def read(self) -> bytes:
        data = self._file.read(_CHUNK) if self._file else b""
        if data:
            return data
        other = self._other()
        if other is None:
            return b""
        # The end of a file that was replaced may have come meanwhile.
        data = self._file.read() if self._file else b""
        self._take(other)
        return data + other.read(_CHUNK)

    def _other(self) -> IO[bytes] | None:
        """Return the file at the path, open, if it is another one than that which is read."""
        try:
            found = self._path.stat()
            if self._file and os.path.samestat(found, os.fstat(self._file.fileno())):
                return None
            return self._path.open("rb", buffering=0)
        except FileNotFoundError:
            return None

    def _take(self, file: IO[bytes]) -> None:
        """Read this file from now on."""
        self._opened.close()
        self._file = self._opened.enter_context(file)
