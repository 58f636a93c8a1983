"""What paramiko lacks: a transport that notices a silent host, channels to a Unix socket of the
host and their relay to a local socket, and a close that is safe while data arrives."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST, cMSG_GLOBAL_REQUEST
from paramiko.packet import Packetizer

CONNECT_SECONDS = 15.0
CHUNK_BYTES = 1 << 16
#: A host from which nothing came for so long is asked to answer,
KEEPALIVE_SECONDS = 5.0
#: and one that has not answered for so long is lost.
SILENT_SECONDS = 15.0
#: The thread that reads looks ten times a second; more than this between two looks is a pause of
#: this program, in which it has heard nothing because it did not listen.
LISTENING_SECONDS = 0.5


class _Packets(Packetizer):
    """paramiko's packets, with the time of the last one that came."""

    heard = 0.0
    check: Callable[[], None] | None = None

    def read_message(self) -> tuple[int, paramiko.Message]:
        message = super().read_message()
        self.heard = time.monotonic()
        return message

    def _check_keepalive(self) -> None:
        # The thread that reads calls this some ten times a second while nothing arrives.
        if self.check:
            self.check()


class Transport(paramiko.Transport):
    """A paramiko transport that ends when the host is silent, and that can also open channels to
    Unix sockets of the host.

    paramiko's own keepalives count no answers, so that a link which a firewall has forgotten
    stays open for ever.
    """

    packetizer: _Packets

    def __init__(self, sock: Any, host_key_algorithms: tuple[str, ...]) -> None:
        """Make a transport on a connected socket, or on what is like one. It asks for these
        algorithms of host keys, in this order."""
        super().__init__(sock, packetizer_class=_Packets)
        self._host_key_algorithms = host_key_algorithms
        # When the host was last asked to answer, and when first since it was heard.
        self._asked = self._first_asked = 0.0
        # When this was last checked, and for how long the host was listened to since it was asked.
        self._checked = self._listened = 0.0
        self._opening = threading.Lock()
        self._wanted = threading.local()
        self._channel_handler_table = {
            **paramiko.Transport._channel_handler_table,  # type: ignore[attr-defined]
            MSG_CHANNEL_REQUEST: _handle_request,
        }

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        return self._host_key_algorithms

    # -- silence ---------------------------------------------------------------------------

    @property
    def silence(self) -> float:
        """Return for how many seconds the host has been silent, if it was asked to answer; else 0.
        This is for operations that have waited in vain: a host takes a moment to answer."""
        heard = self.packetizer.heard
        return time.monotonic() - heard if self._first_asked > heard else 0.0

    def watch(self) -> None:
        """End when the host is silent for SILENT_SECONDS from now on."""
        self.packetizer.heard = time.monotonic()
        self.packetizer.check = self._check

    def _check(self) -> None:
        now, heard = time.monotonic(), self.packetizer.heard
        if now - max(heard, self._asked) > KEEPALIVE_SECONDS:
            self._asked = now
            if self._first_asked < heard:
                self._first_asked, self._listened = now, 0.0
            self._ask()
        # Silence counts from the question on, and only while this thread listens: this program may
        # have been stopped, or have had no processor.
        self._listened += min(now - self._checked, LISTENING_SECONDS)
        self._checked = now
        if self._first_asked > heard and self._listened > SILENT_SECONDS - KEEPALIVE_SECONDS:
            raise paramiko.SSHException("the host is silent")

    def _ask(self) -> None:
        """Send a request that any host answers, as OpenSSH's ServerAliveInterval does. This is the
        thread that reads: it never waits until it can send."""
        if not self.clear_to_send_lock.acquire(blocking=False):
            return
        try:
            if self.clear_to_send.is_set() and _has_room(self.sock):
                message = paramiko.Message()
                message.add_byte(cMSG_GLOBAL_REQUEST)
                message.add_string("keepalive@openssh.com")
                message.add_boolean(True)
                self.packetizer.send_message(message)
        finally:
            self.clear_to_send_lock.release()

    # -- channels --------------------------------------------------------------------------

    def open_channel(self, *args: Any, **options: Any) -> paramiko.Channel:
        # paramiko keeps why a channel was refused in one place for all threads.
        with self._opening:
            return super().open_channel(*args, **options)

    def open_unix_channel(self, path: str) -> paramiko.Channel:
        """Open a direct-streamlocal channel (OpenSSH's PROTOCOL, section 2.4) to the host's Unix
        socket `path`. Raises paramiko.ChannelException when nothing listens there."""
        self._wanted.path = path
        try:
            return self.open_channel("direct-streamlocal@openssh.com", timeout=CONNECT_SECONDS)
        finally:
            self._wanted.path = None

    def _send_user_message(self, data: paramiko.Message) -> None:
        # open_channel sends its request as the next message of the caller's thread. For a kind of
        # channel that it does not know it adds only the common fields; the others are added here.
        path = getattr(self._wanted, "path", None)
        if path is not None:
            self._wanted.path = None
            data.add_string(path)
            data.add_string("")
            data.add_int(0)
        super()._send_user_message(data)  # type: ignore[misc]


def _has_room(sock: Any) -> bool:
    """Return whether a short message can be sent without waiting."""
    if isinstance(sock, paramiko.Channel):
        return sock.send_ready()
    return bool(select.select([], [sock], [], 0)[1])


def _handle_request(channel: paramiko.Channel, message: paramiko.Message) -> None:
    """Handle a request that the host makes in a channel. paramiko ignores that a command was ended
    by a signal (RFC 4254, section 6.10): such a command gets the status that a shell gives it."""
    request = message.get_remainder()
    said = paramiko.Message(request)
    if said.get_text() != "exit-signal":
        channel._handle_request(paramiko.Message(request))  # type: ignore[attr-defined]
        return
    said.get_boolean()  # whether an answer is wanted: never
    number = getattr(signal, f"SIG{said.get_text()}", 0)
    channel.exit_status = 128 + number
    channel.status_event.set()


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
