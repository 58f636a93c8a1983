"""Run commands on a guest's serial console with exact output, even while the kernel prints.

Commands go through the guest's `hil run` (payload/guest-tool.c), which frames the output in an
alphabet that has neither `[` nor a space. So kernel messages can be recognised wherever they are in
the stream, in the middle of a line too. They are taken out and kept apart.
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
#: In bytes. The guest's tty takes a line of at most 4095 (N_TTY_BUF_SIZE).
_LONGEST_LINE = 4000
#: The bytes of a longer command that are sent at once. As base64 they fit into a line.
_PIECE_BYTES = 2880
#: How many characters of a command are in messages.
_LONGEST_SHOWN = 1000
#: The guest's file with a longer command.
_SCRIPT = "/tmp/command"
#: The shortest wait, in seconds.
_MOMENT = 0.001

_MESSAGE = re.compile(rb"\[ *\d+\.\d{6}\][^\n]*\n")
#: The beginning of what may become a message when more bytes have arrived.
_BEGUN = re.compile(rb"\[(?: *(?:\d+(?:\.(?:\d{1,6}(?:\][^\n]*)?)?)?)?)?\Z")
#: What a kernel prints when it dies, and what the firmware (EDK2) prints when it dies itself.
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
    """Return the last `count` lines of a text, indented for an error's message."""
    return "\n".join("  | " + line for line in text.splitlines()[-count:])


def shortened(command: str) -> str:
    """Return the beginning of a long command, for messages."""
    return command if len(command) <= _LONGEST_SHOWN else f"{command[:_LONGEST_SHOWN]}…"


class GuestCrashedError(ProductError):
    """The guest's kernel or firmware died; the message has its last lines."""


class GuestCommandError(ProductError):
    """A command ended in the guest with a status other than 0: something that it needs is missing
    there, or does not work."""


class GuestSilentError(ProductError):
    """The guest did not answer in time; the message has its last lines."""


class MessageSplitter:
    """Parts a console's bytes into kernel messages and the rest. Pure.

    The bytes may be cut into pieces at any place.
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, list[bytes]]:
        """Return (everything else, whole messages). An unfinished message waits for more bytes."""
        data = self._held + data
        messages = [found.rstrip(b"\r\n") for found in _MESSAGE.findall(data)]
        rest = _MESSAGE.sub(b"", data)
        begun = _BEGUN.search(rest)
        cut = begun.start() if begun else len(rest)
        self._held = rest[cut:]
        return rest[:cut], messages


class _Stream(_BytesSpawn):
    """A pexpect stream on a socket that takes the kernel's messages out before it matches."""

    def __init__(self, sock: socket.socket, on_message: Callable[[bytes], None]) -> None:
        super().__init__(sock, maxread=1 << 16)
        self.splitter = MessageSplitter()
        self.on_message = on_message
        self.seen = bytearray()

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> bytes:
        # pexpect passes the time that it has left. With exactly 0 the socket would not block, and
        # pexpect does not handle the BlockingIOError that follows.
        try:
            raw = super().read_nonblocking(size, timeout or _MOMENT)
        except ConnectionError as problem:
            # A far end that closes with a command unread resets the connection.
            raise pexpect.EOF(repr(problem)) from problem
        self.seen += raw
        rest, messages = self.splitter.feed(raw)
        for message in messages:
            self.on_message(message)
        return rest


@dataclass(frozen=True)
class Output:
    """The result of a guest's command: its exit status, and its output with errors mixed in."""

    command: str
    status: int
    data: bytes

    @property
    def text(self) -> str:
        """Return the output as text."""
        return self.data.decode(errors="replace")

    def checked(self) -> Output:
        """Return the output itself if the status is 0.

        Raises GuestCommandError for another status, HarnessError if the guest has no such command.
        """
        if self.status == 0:
            return self
        # The guest's programs are ours: a shell that does not find one ends with 126 or 127.
        error = HarnessError if self.status in (126, 127) else GuestCommandError
        raise error(
            f"`{shortened(self.command)}` ended in the guest with status {self.status}: {self.text}"
        )


class Console:
    """A connected console, for one caller at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[str] = []
        self._crashed = False
        self._stream = _Stream(sock, self._take)
        self._nonces = itertools.count(int(time.monotonic() * 1000) % 1_000_000)

    @classmethod
    @contextlib.contextmanager
    def on(cls, sock: socket.socket) -> Iterator[Console]:
        """Yield a console on a connected socket, which it closes in the end."""
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

    def is_closed(self) -> bool:
        """Return whether the other end has closed the console: QEMU has ended or is about to, or
        the link to the host is lost."""
        try:
            return self._stream.expect([pexpect.TIMEOUT, pexpect.EOF], timeout=_MOMENT) == 1
        except OSError:
            return True

    def tail(self, lines: int = 25) -> str:
        """Return the last lines as they were on the console, kernel messages included."""
        return last_lines(self._stream.seen.decode(errors="replace").replace("\r", ""), lines)

    def _expect(self, what: str, pattern: bytes, seconds: float) -> re.Match[bytes]:
        end = time.monotonic() + seconds
        while True:
            # In short turns: a message about a crash does not end pexpect's wait.
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
                raise self._closed(what)
            if time.monotonic() >= end:
                raise GuestSilentError(
                    f"waited {seconds:.0f} s for {what}; last on the console:\n{self.tail()}"
                )

    def _closed(self, what: str) -> LabError:
        return LabError(
            f"the guest's console closed before {what}:\n{self.tail()}",
            fix="QEMU has ended or the link to the host is lost; see QEMU's messages",
        )

    def _gather_crash(self) -> None:
        """Wait until the rest of the crash report has arrived, three seconds at most."""
        end = time.monotonic() + 3
        while time.monotonic() < end and not _CRASH_OVER.search(self._stream.seen):
            self._stream.expect([pexpect.TIMEOUT, pexpect.EOF], timeout=0.2)

    # -- for callers -----------------------------------------------------------------------

    def wait_for(self, what: str, pattern: bytes, seconds: float) -> re.Match[bytes]:
        """Wait until something outside a command is printed, such as init's READY.

        Raises GuestCrashedError, GuestSilentError, LabError (console closed).
        """
        return self._expect(what, pattern, seconds)

    def run(
        self,
        command: str,
        *,
        timeout: float = COMMAND_SECONDS,
        check: bool = True,
        known_as: str = "",
    ) -> Output:
        """Run a shell command in the guest; return its exact output, whatever the kernel prints. A
        command that is too long for a line of the guest's tty, or has a character that a tty acts
        on, is brought there in pieces first. Errors name it as it is, or else as `known_as`.

        Raises GuestCommandError if `check` and the status is not 0, HarnessError if the guest has
        no such command; GuestCrashedError, GuestSilentError and LabError as `wait_for`.
        """
        nonce, shown = f"{next(self._nonces):x}", shortened(known_as or command)
        line = f"hil run {nonce} {shlex.quote(command)}"
        if len(line.encode()) > _LONGEST_LINE or not line.isprintable():
            self._bring(command.encode())
            line = f"hil run {nonce} 'sh {_SCRIPT}'"
        self.send(line)
        frame = rb"~HIL:%s:([A-Za-z0-9+/=\s]*):(\d+):([0-9a-f]{8})~" % nonce.encode()
        match = self._expect(f"the end of `{shown}`", frame, timeout)
        data = base64.b64decode(b"".join(match[1].split()))
        if zlib.crc32(data) != int(match[3], 16):
            raise HarnessError(
                f"the output of `{shown}` was damaged on the console:\n{self.tail()}"
            )
        output = Output(command, int(match[2]), data)
        return output.checked() if check else output

    def _bring(self, script: bytes) -> None:
        """Write the guest's file _SCRIPT."""
        for start in range(0, len(script), _PIECE_BYTES):
            piece = base64.b64encode(script[start : start + _PIECE_BYTES]).decode()
            self.run(f"echo {piece} | base64 -d {'>>' if start else '>'}{_SCRIPT}")

    def send(self, line: str) -> None:
        """Type a line without waiting for an answer, such as `reboot -f`. Raises LabError when the
        console is closed."""
        try:
            self._stream.sendline(line)
        except OSError as problem:
            raise self._closed(f"`{shortened(line)}` was sent") from problem
