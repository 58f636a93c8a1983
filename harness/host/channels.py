"""What paramiko lacks of channels: to a Unix socket, relayed to one here, closed without harm."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Any

import paramiko

CONNECT_SECONDS = 15.0
CHUNK_BYTES = 1 << 16


class Transport(paramiko.Transport):
    """paramiko's transport, and the one kind of channel it has no name for."""

    _opening = threading.local()

    def open_unix_channel(self, path: str) -> paramiko.Channel:
        self._opening.path = path
        try:
            return self.open_channel("direct-streamlocal@openssh.com", timeout=CONNECT_SECONDS)
        finally:
            self._opening.path = None

    def _send_user_message(self, data: paramiko.Message) -> None:
        # open_channel sends its request from the caller's thread as this thread's next message,
        # with no fields beyond the common ones for kinds that it does not know.
        path = getattr(self._opening, "path", None)
        if path is not None:
            self._opening.path = None
            data.add_string(path)
            data.add_string("")
            data.add_int(0)
        super()._send_user_message(data)  # type: ignore[misc]


class Relay:
    """Carries bytes both ways between a channel and a local socket until one side ends."""

    def __init__(self, channel: paramiko.Channel, sock: socket.socket, path: str) -> None:
        self.channel, self.sock = channel, sock
        self._ends: list[Any] = [channel, sock]
        self.thread = threading.Thread(target=self._carry, name=f"relay {path}", daemon=True)
        self.thread.start()

    def _carry(self) -> None:
        try:
            while True:
                ready, _, _ = select.select(self._ends, [], [])
                if self.channel in ready:
                    data = self.channel.recv(CHUNK_BYTES)
                    if not data:
                        return
                    self.sock.sendall(data)
                if self.sock in ready:
                    data = self.sock.recv(CHUNK_BYTES)
                    if not data:
                        return
                    self.channel.sendall(data)
        except (OSError, ValueError, EOFError):
            return  # either end was closed: the relay's ordinary end
        finally:
            close(self.channel)
            self.sock.close()

    def close(self) -> None:
        close(self.channel)
        self.thread.join(timeout=5)


def close(channel: paramiko.Channel) -> None:
    """Close a channel while data may still come. Of those paramiko tells by the channel's pipe,
    which it closes without asking who is writing: the transport's thread dies of that, or writes
    into a descriptor that is somebody else's by now. So it gets something else to tell by."""
    for buffer in (channel.in_buffer, channel.in_stderr_buffer):
        buffer.set_event(threading.Event())
    # Closing is said to the other end; when the link is gone nobody is there to hear it.
    with contextlib.suppress(OSError, EOFError):
        channel.close()
