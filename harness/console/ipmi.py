"""A console that a BMC carries by IPMI (serial over LAN), by ipmitool(1)."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import tempfile
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, ClassVar

from harness.console.source import ConsoleLostError, ConsoleStream
from harness.errors import LabError
from harness.power.ipmi import IpmiBmc, complaint, environment, no_ipmitool
from harness.secret import Secret
from harness.waiting import wait_for

_CHUNK = 1 << 16
#: How ipmitool is told to end the console (ipmitool(1), sol activate), and how long that may take.
_END, _END_SECONDS = b"~.", 5.0
#: What it prints once the console is there, and how long it may take until then.
_BEGUN = re.compile(rb"\[SOL Session operational[^\n]*\n")
_BEGIN_SECONDS = 15.0


class IpmiConsole(IpmiBmc):
    """A BMC that carries the host's console by IPMI."""

    lag: ClassVar[float] = 2.0

    @contextmanager
    def open(self) -> Iterator[ConsoleStream]:
        whose = f"the BMC at {self.address}"
        password = self.checked_password(whose)
        with tempfile.TemporaryFile() as complaints, _terminal() as (near, far):
            try:
                process = subprocess.Popen(
                    self.command_line("sol", "activate"),
                    env=environment(password),
                    stdin=far,
                    stdout=far,
                    stderr=complaints,
                    # Ctrl-C is for this program.
                    start_new_session=True,
                )
            except FileNotFoundError:
                raise no_ipmitool(whose) from None
            far.close()
            try:
                stream = _ProcessStream(near, whose, complaints, password)
                stream.begin()
                yield stream
            finally:
                _end(process, near)


@contextmanager
def _terminal() -> Iterator[tuple[int, IO[bytes]]]:
    """Yield both ends of a terminal: on anything else ipmitool says nothing before it has said
    much. The body may close the far one."""
    near, other = os.openpty()
    try:
        with os.fdopen(other, "r+b", buffering=0) as far:
            tty.setraw(other)
            yield near, far
    finally:
        os.close(near)


def _end(process: subprocess.Popen[bytes], near: int) -> None:
    """End ipmitool, which tells the BMC, so that the console is free at once."""
    with contextlib.suppress(OSError):
        os.write(near, _END)

    def ended() -> bool:
        # It cannot end while it has something to say that nobody reads.
        with contextlib.suppress(OSError):
            if select.select([near], [], [], 0)[0]:
                os.read(near, _CHUNK)
        return process.poll() is not None

    try:
        wait_for("the end of ipmitool", ended, deadline=_END_SECONDS)
    except LabError:
        process.kill()
    finally:
        process.wait()


class _ProcessStream:
    def __init__(self, output: int, whose: str, complaints: IO[bytes], password: Secret) -> None:
        self._output, self._whose = output, whose
        self._complaints, self._password = complaints, password
        self._first = b""

    def begin(self) -> None:
        """Wait until the console is there; what ipmitool prints until then is not the host's."""
        said = bytearray()

        def begun() -> bool:
            said.extend(self.read())
            return _BEGUN.search(said) is not None

        try:
            wait_for(f"{self._whose} to show the console", begun, deadline=_BEGIN_SECONDS)
        except LabError as problem:
            raise ConsoleLostError(problem.message) from None
        match = _BEGUN.search(said)
        assert match
        self._first = bytes(said[match.end() :])

    def read(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        if not select.select([self._output], [], [], 0)[0]:
            return b""
        try:
            data = os.read(self._output, _CHUNK)
        except OSError:  # nobody has the other end of the terminal any more (EIO)
            data = b""
        if not data:
            self._complaints.seek(0)
            said = complaint(self._complaints.read().decode(errors="replace"))
            raise ConsoleLostError(f"{self._whose} shows no console: {self._password.hide(said)}")
        return data
