"""SSH channels that paramiko lacks: channels to a Unix socket of the host, their relay to a local
socket, and a close that is safe while data arrives."""

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
    """A paramiko transport that can also open channels to Unix sockets of the host."""

    _opening = threading.local()

    def open_unix_channel(self, path: str) -> paramiko.Channel:
        """Open a direct-streamlocal channel (OpenSSH's PROTOCOL, section 2.4) to the host's Unix
        socket `path`. Raises paramiko.ChannelException when nothing listens there."""
        self._opening.path = path
        try:
            return self.open_channel("direct-streamlocal@openssh.com", timeout=CONNECT_SECONDS)
        finally:
            self._opening.path = None

    def _send_user_message(self, data: paramiko.Message) -> None:
        # open_channel sends its request as the next message of the caller's thread. For a kind of
        # channel that it does not know it adds only the common fields; the others are added here.
        path = getattr(self._opening, "path", None)
        if path is not None:
            self._opening.path = None
            data.add_string(path)
            data.add_string("")
            data.add_int(0)
        super()._send_user_message(data)  # type: ignore[misc]


class Relay:
    """A thread that copies bytes both ways between a channel and a local socket until one side
    ends."""

    def __init__(self, channel: paramiko.Channel, sock: socket.socket, path: str) -> None:
        self.channel, self.sock = channel, sock
        self._ends: list[Any] = [channel, sock]
        self.thread = threading.Thread(target=self._copy, name=f"relay {path}", daemon=True)
        self.thread.start()

    def _copy(self) -> None:
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
            return  # either side was closed, which is how a relay normally ends
        finally:
            close(self.channel)
            self.sock.close()

    def close(self) -> None:
        close(self.channel)
        self.thread.join(timeout=5)


def close(channel: paramiko.Channel) -> None:
    """Close a channel, also while data still arrives.

    paramiko announces arriving data through the channel's pipe, and closes that pipe while the
    transport's thread may be writing to it: the thread then dies, or writes to a descriptor that
    has been given to another file meanwhile. So the buffers get another event to announce with.
    """
    for buffer in (channel.in_buffer, channel.in_stderr_buffer):
        buffer.set_event(threading.Event())
    # close() sends a message to the host, which fails when the link is gone; ignore that.
    with contextlib.suppress(OSError, EOFError):
        channel.close()
