"""Bring much output out of a guest: its logs, tables and files, at some megabytes a second.

A command still goes through the console, and so do its status and the length and the checksum of
its output. The output itself goes through a virtio port of its own, as it is and in pieces of
32 KiB: the console's driver hands over 16 bytes at a time, and base64 adds a third. The guest's
`hil send` (payload/guest-tool.c) is the other end.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator

from harness.errors import HarnessError, LabError
from harness.guest.console import Console, Output, shortened
from harness.guest.description import BULK_PORT

#: The shortest time, in seconds, in which nothing may come of an output that the guest has sent.
SILENT_SECONDS = 10.0
_AT_ONCE = 1 << 16
#: Where the guest's kernel names the ports, and where they are.
_PORTS = "/sys/class/virtio-ports"
_DEVICES = "/dev"
#: What is said in place of a receipt by a guest that has no such port. Nothing has run then.
_ABSENT = "no port\n"
_RECEIPT = re.compile(r"(\d{1,18}):([0-9a-f]{8})\n")
#: All of it are built-in commands, because a process takes a guest milliseconds. The number of a
#: port depends on the guest's other virtio devices.
_SEND = """\
for name in {ports}/*/name; do \
if [ -e "$name" ] && read -r found <"$name" && [ "$found" = {port} ]; then \
port=${{name%/name}}; exec hil send "{devices}/${{port##*/}}" {tag} {command}; fi; done; \
echo no port"""


class _Connected:
    """A connection to the port. A thread receives, so that the guest can send while its console is
    waited for; what has come is kept until it is taken."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._came = bytearray()
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._receive, name="bulk", daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        while not self._ended:
            try:
                data = self._sock.recv(_AT_ONCE)
            except OSError:
                data = b""
            with self._changed:
                self._came += data
                self._ended = not data
                self._changed.notify()

    def take(self, head: bytes, length: int) -> bytes:
        """Wait for `head`, and return the `length` bytes after it. What came before is of an output
        that nobody waited for, and is dropped.

        Raises LabError when the port closes, and when nothing has come for SILENT_SECONDS.
        """
        with self._changed:
            heard = time.monotonic()
            while True:
                start = self._came.find(head)
                here = len(self._came) - start - len(head) if start >= 0 else 0
                if start >= 0 and here >= length:
                    end = start + len(head) + length
                    data = bytes(self._came[end - length : end])
                    del self._came[:end]
                    return data
                how = f"{here} of {length} bytes came"
                if self._ended:
                    raise LabError(
                        f"the guest's port {BULK_PORT} closed: {how}",
                        fix="QEMU has ended or the link to the host is lost; see QEMU's messages",
                    )
                before = len(self._came)
                self._changed.wait(max(0.0, heard + SILENT_SECONDS - time.monotonic()))
                if len(self._came) > before:
                    heard = time.monotonic()
                elif time.monotonic() >= heard + SILENT_SECONDS:
                    raise LabError(
                        f"nothing came through the guest's port {BULK_PORT} for "
                        f"{SILENT_SECONDS:.0f} s: {how}"
                    )

    def close(self) -> None:
        """Disconnect and end the thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()


class Bulk:
    """The way for much output of one guest. `connect` returns a socket that is connected to the
    host's end of the port; `note` is told, once, that the guest has no such port."""

    def __init__(
        self, console: Console, connect: Callable[[], socket.socket], note: Callable[[str], None]
    ) -> None:
        self._console, self._connect, self._note = console, connect, note
        self._connected: _Connected | None = None
        self._absent = False

    @classmethod
    @contextlib.contextmanager
    def on(
        cls, console: Console, connect: Callable[[], socket.socket], note: Callable[[str], None]
    ) -> Iterator[Bulk]:
        """Yield the way, connected: so a count of QEMU's open files is the same whether output was
        brought meanwhile or not. It is disconnected in the end. Raises as `connect`."""
        bulk = cls(console, connect, note)
        try:
            bulk._connected = _Connected(connect())
            yield bulk
        finally:
            bulk._drop()

    def run(self, command: str, *, timeout: float, check: bool = True) -> Output:
        """Run a shell command in the guest within `timeout` seconds, and return its exact output
        and status. In a guest without the port the console carries the output, as Console.run.

        Raises what Console.run does; LabError when the port closes or does not deliver,
        HarnessError when the output was damaged on its way.
        """
        output = None if self._absent else self._through_port(command, timeout)
        if output is None:
            return self._console.run(command, timeout=timeout, check=check)
        return output.checked() if check else output

    def _through_port(self, command: str, timeout: float) -> Output | None:
        """Return a command's output, or None if the guest has no port: then nothing has run."""
        tag = secrets.token_hex(8)
        send = _SEND.format(
            ports=_PORTS, devices=_DEVICES, port=BULK_PORT, tag=tag, command=shlex.quote(command)
        )
        connected = self._connected = self._connected or _Connected(self._connect())
        try:
            said = self._console.run(send, timeout=timeout, check=False, known_as=command)
            if said.text == _ABSENT:
                self._absent = True
                self._note(f"the guest has no virtio port {BULK_PORT}: its console is slower")
                return None
            receipt = _RECEIPT.fullmatch(said.text)
            if not receipt:
                raise LabError(
                    f"the output of `{shortened(command)}` was not sent: {said.text.strip()}",
                    fix="see whether QEMU and the link to the host work; `hil send` in the guest "
                    "has said this",
                )
            data = connected.take(f"~HIL:{tag}~\n".encode(), int(receipt[1]))
        except BaseException:
            # What still comes is nobody's. Who comes next has a connection of their own.
            self._drop()
            raise
        if zlib.crc32(data) != int(receipt[2], 16):
            raise HarnessError(f"the output of `{shortened(command)}` was damaged on its way")
        return Output(command, said.status, data)

    def _drop(self) -> None:
        if self._connected:
            self._connected.close()
        self._connected = None
