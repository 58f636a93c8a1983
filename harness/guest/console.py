"""A guest's serial console: commands with exact output, while the kernel prints what it likes.

Commands go through the guest's `hil run` (payload/guest-tool.c), whose output is a frame in an
alphabet that no kernel message shares. Kernel messages are taken out of the stream wherever they
stand, in the middle of a line too, and kept apart.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import re
import shlex
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pexpect
from pexpect.socket_pexpect import SocketSpawn

from harness import kernel_log
from harness.errors import HarnessError, LabError, ProductError

READY = b"~HIL-READY~"
COMMAND_SECONDS = 30.0
#: The tty takes a line of 4095 bytes (N_TTY_BUF_SIZE).
_LONGEST_LINE = 4000
#: The shortest wait, in seconds.
_MOMENT = 0.001

_MESSAGE = re.compile(rb"\[ *\d+\.\d{6}\][^\n]*\n")
#: The beginning of what may become a message once more bytes are in.
_BEGUN = re.compile(rb"\[(?: *(?:\d+(?:\.(?:\d{1,6}(?:\][^\n]*)?)?)?)?)?\Z")
#: What a kernel says that died or is dying, and EDK2 of itself.
CRASH = re.compile(
    rf"{kernel_log.CRASH}|^Synchronous Exception at |^ASSERT \[",
    re.MULTILINE,
)
_CRASH_OVER = re.compile(rb"---\[ end Kernel panic|---\[ end trace")
# The class is generic for type checkers only.
if TYPE_CHECKING:
    _BytesSpawn = SocketSpawn[bytes]
else:
    _BytesSpawn = SocketSpawn


def last_lines(text: str, count: int) -> str:
    """For an error's message."""
    return "\n".join("  | " + line for line in text.splitlines()[-count:])


class GuestCrashedError(ProductError):
    """The guest's kernel or firmware died; the message has its last lines."""


class GuestSilentError(ProductError):
    """The guest did not answer in time; the message has its last lines."""


class MessageSplitter:
    """Parts a console's bytes into kernel messages and the rest. Pure; feed it in any pieces."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, list[bytes]]:
        """(everything else, whole messages). An unfinished message is held back."""
        data = self._held + data
        messages = [found.rstrip(b"\r\n") for found in _MESSAGE.findall(data)]
        rest = _MESSAGE.sub(b"", data)
        begun = _BEGUN.search(rest)
        cut = begun.start() if begun else len(rest)
        self._held = rest[cut:]
        return rest[:cut], messages


class _Stream(_BytesSpawn):
    """pexpect on a socket, with the kernel's messages taken out before matching."""

    def __init__(self, sock: socket.socket, on_message: Callable[[bytes], None]) -> None:
        super().__init__(sock, maxread=1 << 16)
        self.splitter = MessageSplitter()
        self.on_message = on_message
        self.seen = bytearray()

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> bytes:
        # pexpect calls with what is left of its time. Of exactly 0 a socket would make a read that
        # does not wait, and whose error (BlockingIOError) pexpect does not know.
        raw = super().read_nonblocking(size, timeout or _MOMENT)
        self.seen += raw
        rest, messages = self.splitter.feed(raw)
        for message in messages:
            self.on_message(message)
        return rest


@dataclass(frozen=True)
class Output:
    """What a guest's command gave: exit status, and output with errors mixed in."""

    command: str
    status: int
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


class Console:
    """A connected console. One caller at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[str] = []
        self._crashed = False
        self._stream = _Stream(sock, self._take)
        self._nonces = itertools.count(int(time.monotonic() * 1000) % 1_000_000)

    @classmethod
    @contextlib.contextmanager
    def on(cls, sock: socket.socket) -> Iterator[Console]:
        console = cls(sock)
        try:
            yield console
        finally:
            with contextlib.suppress(OSError):
                console._stream.close()

    def _take(self, message: bytes) -> None:
        text = message.decode(errors="replace")
        self.messages.append(text)
        self._crashed = self._crashed or CRASH.search(text) is not None

    def tail(self, lines: int = 25) -> str:
        """The last lines as they stood on the console."""
        return last_lines(self._stream.seen.decode(errors="replace").replace("\r", ""), lines)

    def _expect(self, what: str, pattern: bytes, seconds: float) -> re.Match[bytes]:
        end = time.monotonic() + seconds
        while True:
            # In short turns: a message that tells of a crash does not end an expectation.
            turn = max(0.0, min(0.5, end - time.monotonic()))
            found = self._stream.expect([pattern, pexpect.TIMEOUT, pexpect.EOF], timeout=turn)
            if found == 0:
                match = self._stream.match
                assert isinstance(match, re.Match)
                return match
            if self._crashed:
                self._gather_crash()
                raise GuestCrashedError(f"the guest crashed before {what}:\n{self.tail(60)}")
            if found == 2:
                raise LabError(
                    f"the guest's console closed before {what}:\n{self.tail()}",
                    fix="QEMU has ended or the link to the host is lost; see QEMU's messages",
                )
            if time.monotonic() >= end:
                raise GuestSilentError(
                    f"waited {seconds:.0f} s for {what}; last on the console:\n{self.tail()}"
                )

    def _gather_crash(self) -> None:
        """Let the rest of the report arrive, for three seconds at most."""
        end = time.monotonic() + 3
        while time.monotonic() < end and not _CRASH_OVER.search(self._stream.seen):
            self._stream.expect([pexpect.TIMEOUT, pexpect.EOF], timeout=0.2)

    # -- for callers -----------------------------------------------------------------------

    def wait_for(self, what: str, pattern: bytes, seconds: float) -> re.Match[bytes]:
        """Wait for something outside a command: init's words.

        Raises GuestCrashedError, GuestSilentError, LabError (console closed).
        """
        return self._expect(what, pattern, seconds)

    def run(self, command: str, *, timeout: float = COMMAND_SECONDS, check: bool = True) -> Output:
        """Run a shell command in the guest; its exact output, whatever the kernel prints.

        Raises HarnessError when `check` and the status is not 0, or the line is too long for
        a tty; GuestCrashedError, GuestSilentError, LabError as `wait_for`.
        """
        nonce = f"{next(self._nonces):x}"
        line = f"hil run {nonce} {shlex.quote(command)}"
        if len(line) > _LONGEST_LINE or "\n" in line:
            raise HarnessError(f"too long for one console line: {command[:80]}…")
        self._stream.sendline(line)
        frame = rb"~HIL:%s:([A-Za-z0-9+/=\s]*):(\d+):([0-9a-f]{8})~" % nonce.encode()
        match = self._expect(f"the end of `{command}`", frame, timeout)
        data = base64.b64decode(b"".join(match[1].split()))
        if zlib.crc32(data) != int(match[3], 16):
            raise HarnessError(f"output of `{command}` was damaged on the console:\n{self.tail()}")
        output = Output(command, int(match[2]), data)
        if check and output.status != 0:
            raise HarnessError(f"guest: `{command}` gave status {output.status}: {output.text}")
        return output

    def send(self, line: str) -> None:
        """Type a line whose answer is not awaited: `reboot -f`."""
        self._stream.sendline(line)
