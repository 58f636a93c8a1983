"""Messages of vfio-user: a frame, a body, descriptors beside them, over a Unix socket.

Protocol: QEMU's docs/interop/vfio-user.rst.
"""

from __future__ import annotations

import array
import contextlib
import enum
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

#: What we announce, and the largest data a message of ours or the client's carries.
MAX_TRANSFER = 1 << 20
MAX_DESCRIPTORS = 8


class MessageType(enum.IntEnum):
    """Messages that a server must or may answer."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DEVICE_RESET = 13


_HEADER = struct.Struct("<HHIII")  # id, command, size with this header, flags, error
_TYPE_MASK, _TYPE_COMMAND, _TYPE_REPLY = 0xF, 0, 1
_NO_REPLY, _ERROR = 1 << 4, 1 << 5
#: Before the data of a region: the largest body's layout.
REGION_ACCESS = struct.Struct("<QII")  # offset, region, count


class FrameError(Exception):
    """A message that is none: the connection cannot go on."""


class RefusedError(Exception):
    """A request that cannot be met; the reply carries the errno."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.errno = code


@dataclass(frozen=True)
class Message:
    """One request. It owns its descriptors until somebody takes them."""

    id: int
    command: int
    body: bytes
    wants_reply: bool
    descriptors: list[int]


def reply(message: Message, body: bytes = b"", error: int = 0) -> bytes:
    """The answer's bytes."""
    flags = _TYPE_REPLY | (_ERROR if error else 0)
    size = _HEADER.size + len(body)
    return _HEADER.pack(message.id, message.command, size, flags, error) + body


def parse_header(data: bytes) -> tuple[int, int, int, bool]:
    """(id, command, bytes of the body, whether a reply is wanted). Raises FrameError."""
    identity, command, size, flags, _ = _HEADER.unpack(data)
    if flags & _TYPE_MASK != _TYPE_COMMAND:
        raise FrameError(f"message {identity} is no command: flags {flags:#x}")
    if not _HEADER.size <= size <= _HEADER.size + REGION_ACCESS.size + MAX_TRANSFER:
        raise FrameError(f"message {identity} of {size} bytes")
    return identity, command, size - _HEADER.size, not flags & _NO_REPLY


def receive(sock: socket.socket) -> Message | None:
    """The next message, None at the end. Raises FrameError."""
    descriptors: list[int] = []
    with _closing_on_error(descriptors):
        header = _exactly(sock, _HEADER.size, descriptors)
        if not header:
            return None
        identity, command, size, wants_reply = parse_header(header)
        body = _exactly(sock, size, descriptors) if size else b""
        if len(body) < size:
            raise FrameError(f"message {identity} ends early")
        return Message(identity, command, body, wants_reply, descriptors)


@contextlib.contextmanager
def _closing_on_error(descriptors: list[int]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _exactly(sock: socket.socket, size: int, descriptors: list[int]) -> bytes:
    """`size` bytes, or none at the end of the stream. Raises FrameError for fewer."""
    data = bytearray()
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    while len(data) < size:
        chunk, ancillary, flags, _ = sock.recvmsg(size - len(data), room)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                descriptors += numbers
        if flags & socket.MSG_CTRUNC:
            raise FrameError("more descriptors than were agreed on")
        if not chunk:
            if data:
                raise FrameError(f"the stream ends after {len(data)} of {size} bytes")
            return b""
        data += chunk
    return bytes(data)
