"""Messages of vfio-user over a Unix socket: a header and a body, with file descriptors beside them.

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

#: The limits that the server announces. No message carries more bytes of data, from either side.
MAX_TRANSFER = 1 << 20
MAX_DESCRIPTORS = 8


class MessageType(enum.IntEnum):
    """The commands that a server must or may answer."""

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
#: What stands before a region's data in a body. No body is longer than such a one.
REGION_ACCESS = struct.Struct("<QII")  # offset, region, count


class FrameError(Exception):
    """A message whose header or length is wrong: the connection cannot go on."""


class RefusedError(Exception):
    """A request that is refused; the reply carries `errno`."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.errno = code


@dataclass(frozen=True)
class Message:
    """One request. Whoever receives it must close its descriptors."""

    id: int
    command: int
    body: bytes
    wants_reply: bool
    descriptors: list[int]


def reply(message: Message, body: bytes = b"", error: int = 0) -> bytes:
    """Return the bytes of the reply to a message; `error` is an errno, 0 for success."""
    flags = _TYPE_REPLY | (_ERROR if error else 0)
    size = _HEADER.size + len(body)
    return _HEADER.pack(message.id, message.command, size, flags, error) + body


def parse_header(data: bytes) -> tuple[int, int, int, bool]:
    """Return a header's (id, command, bytes of the body, whether a reply is wanted). Raises
    FrameError."""
    identity, command, size, flags, _ = _HEADER.unpack(data)
    if flags & _TYPE_MASK != _TYPE_COMMAND:
        raise FrameError(f"message {identity} is no command: flags {flags:#x}")
    if not _HEADER.size <= size <= _HEADER.size + REGION_ACCESS.size + MAX_TRANSFER:
        raise FrameError(f"message {identity} of {size} bytes")
    return identity, command, size - _HEADER.size, not flags & _NO_REPLY


def receive(sock: socket.socket) -> Message | None:
    """Return the next message, or None when the client has hung up. Raises FrameError."""
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
    """Return `size` bytes, or none at the end of the stream; append the descriptors beside them to
    `descriptors`. Raises FrameError for fewer bytes."""
    data = bytearray()
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    while len(data) < size:
        chunk, ancillary, flags, _ = sock.recvmsg(size - len(data), room)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                descriptors += numbers
        if flags & socket.MSG_CTRUNC or len(descriptors) > MAX_DESCRIPTORS:
            raise FrameError("more descriptors than were agreed on")
        if not chunk:
            if data:
                raise FrameError(f"the stream ends after {len(data)} of {size} bytes")
            return b""
        data += chunk
    return bytes(data)
