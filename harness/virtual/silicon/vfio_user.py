"""The server of vfio-user: one PCI device in a process of its own, for QEMU's vfio-user-pci.

Messages come over a Unix socket. With DMA_MAP come descriptors of the machine's memory, so that the
device reads and writes that memory itself. Protocol: QEMU's docs/interop/vfio-user.rst.

All that a client sends is checked before it is used. A message with a wrong header ends the
connection, because it is unknown where the next one starts; a message with wrong content is
answered with an error, as the protocol requires.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from harness.virtual.silicon.memory import PAGE, Memory
from harness.virtual.silicon.messages import (
    MAX_DESCRIPTORS,
    MAX_TRANSFER,
    REGION_ACCESS,
    Message,
    MessageType,
    RefusedError,
    receive,
    reply,
)

VERSION = (0, 1)

_VERSION = struct.Struct("<HH")
_DMA_MAP = struct.Struct("<IIQQQ")  # argsz, flags, offset in the file, address, size
_DMA_UNMAP = struct.Struct("<IIQQ")  # argsz, flags, address, size
_DMA_READ, _DMA_WRITE, _UNMAP_ALL = 1, 2, 2
_DEVICE_INFO = struct.Struct("<IIII")  # argsz, flags, regions, interrupts
_RESETTABLE, _IS_PCI = 1, 2
_REGION_INFO = struct.Struct("<IIIIQQ")  # argsz, flags, index, capabilities, size, offset
_READABLE, _WRITABLE = 1, 2
_IRQ_INFO = struct.Struct("<IIII")  # argsz, flags, index, count
_SET_IRQS = struct.Struct("<IIIII")  # argsz, flags, index, start, count

#: Regions of a PCI device, as VFIO numbers them (include/uapi/linux/vfio.h).
_BAR0, _CONFIG, _REGIONS, _IRQ_TYPES = 0, 7, 9, 5
_CONFIG_BYTES = 256


class Bar0(Protocol):
    """The registers behind BAR 0. Accesses are naturally aligned and of 4 or 8 bytes."""

    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> None: ...
    def reset(self) -> None: ...


@dataclass(frozen=True)
class PciIdentity:
    """The identity of the device in its configuration space. `bar_bytes`, the size of BAR 0, is a
    power of two."""

    vendor: int
    device: int
    class_code: int
    bar_bytes: int


class ConfigSpace:
    """A PCI configuration space of 256 bytes: type 0, with one 32-bit memory BAR."""

    _COMMAND, _CLASS, _BAR, _INTERRUPT_LINE = 0x04, 0x09, 0x10, 0x3C
    _COMMAND_BITS = 0x0406  # memory, bus master, interrupt disable

    def __init__(self, identity: PciIdentity) -> None:
        self._identity = identity
        self._bytes = bytearray(_CONFIG_BYTES)
        struct.pack_into("<HH", self._bytes, 0, identity.vendor, identity.device)
        self._bytes[self._CLASS : self._CLASS + 3] = identity.class_code.to_bytes(3, "little")

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._bytes[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        for at, byte in enumerate(data, start=offset):
            if self._COMMAND <= at < self._COMMAND + 2:
                self._bytes[at] = byte & self._COMMAND_BITS >> 8 * (at - self._COMMAND)
            elif self._BAR <= at < self._BAR + 4 or at == self._INTERRUPT_LINE:
                self._bytes[at] = byte
        bar = int.from_bytes(self._bytes[self._BAR : self._BAR + 4], "little")
        bar &= ~(self._identity.bar_bytes - 1) & 0xFFFF_FFFF
        struct.pack_into("<I", self._bytes, self._BAR, bar)


class Endpoint:
    """One device: it answers a client's requests. Its only I/O is the memory that it maps."""

    def __init__(self, identity: PciIdentity, registers: Bar0, memory: Memory) -> None:
        self.identity, self.registers, self.memory = identity, registers, memory
        self.config = ConfigSpace(identity)
        self._agreed = False
        self._handlers: dict[int, Callable[[Message], bytes]] = {
            MessageType.VERSION: self._version,
            MessageType.DMA_MAP: self._dma_map,
            MessageType.DMA_UNMAP: self._dma_unmap,
            MessageType.DEVICE_GET_INFO: self._device_info,
            MessageType.DEVICE_GET_REGION_INFO: self._region_info,
            MessageType.DEVICE_GET_IRQ_INFO: self._irq_info,
            MessageType.DEVICE_SET_IRQS: self._set_irqs,
            MessageType.REGION_READ: self._region_read,
            MessageType.REGION_WRITE: self._region_write,
            MessageType.DEVICE_RESET: self._reset,
        }

    def answer(self, message: Message) -> bytes:
        """Carry out a request and return the reply's body. Raises RefusedError."""
        handler = self._handlers.get(message.command)
        if handler is None:
            raise RefusedError(errno.ENOTSUP, f"command {message.command}")
        if not self._agreed and message.command != MessageType.VERSION:
            raise RefusedError(errno.EPROTO, "the first message must be VERSION")
        return handler(message)

    @staticmethod
    def _fields(layout: struct.Struct, message: Message) -> tuple[int, ...]:
        if len(message.body) < layout.size:
            raise RefusedError(
                errno.EINVAL, f"command {message.command} has {len(message.body)} bytes"
            )
        return layout.unpack_from(message.body)

    def _version(self, message: Message) -> bytes:
        major, minor = self._fields(_VERSION, message)
        if self._agreed:
            raise RefusedError(errno.EPROTO, "a version was agreed on already")
        if major != VERSION[0]:
            raise RefusedError(errno.ENOTSUP, f"version {major}.{minor}")
        text = message.body[_VERSION.size :].rstrip(b"\0")
        try:
            wanted = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            raise RefusedError(errno.EINVAL, "capabilities are not JSON") from None
        if not isinstance(wanted, dict):
            raise RefusedError(errno.EINVAL, "capabilities are not a JSON object")
        self._agreed = True
        capabilities = {
            "max_msg_fds": MAX_DESCRIPTORS,
            "max_data_xfer_size": MAX_TRANSFER,
            "pgsizes": PAGE,
        }
        body = _VERSION.pack(VERSION[0], min(minor, VERSION[1]))
        return body + json.dumps({"capabilities": capabilities}).encode() + b"\0"

    def _dma_map(self, message: Message) -> bytes:
        _, flags, offset, address, size = self._fields(_DMA_MAP, message)
        if not flags & _DMA_READ or flags & ~(_DMA_READ | _DMA_WRITE):
            raise RefusedError(errno.EINVAL, f"DMA flags {flags:#x}")
        if len(message.descriptors) > 1:
            raise RefusedError(errno.EINVAL, "more than one descriptor for a DMA region")
        file = message.descriptors[0] if message.descriptors else None
        self.memory.add(address, size, file, offset, bool(flags & _DMA_WRITE))
        return b""

    def _dma_unmap(self, message: Message) -> bytes:
        _, flags, address, size = self._fields(_DMA_UNMAP, message)
        if flags == _UNMAP_ALL and address == size == 0:
            self.memory.clear()
        elif flags:
            raise RefusedError(errno.ENOTSUP, f"DMA unmap flags {flags:#x}")
        else:
            self.memory.remove(address, size)
        return message.body[: _DMA_UNMAP.size]

    def _device_info(self, message: Message) -> bytes:
        self._fields(_DEVICE_INFO, message)
        flags = _RESETTABLE | _IS_PCI
        return _DEVICE_INFO.pack(_DEVICE_INFO.size, flags, _REGIONS, _IRQ_TYPES)

    def _size(self, region: int) -> int:
        return {_BAR0: self.identity.bar_bytes, _CONFIG: _CONFIG_BYTES}.get(region, 0)

    def _region_info(self, message: Message) -> bytes:
        _, _, index, *_ = self._fields(_REGION_INFO, message)
        if index >= _REGIONS:
            raise RefusedError(errno.EINVAL, f"region {index}")
        size = self._size(index)
        flags = _READABLE | _WRITABLE if size else 0
        return _REGION_INFO.pack(_REGION_INFO.size, flags, index, 0, size, index << 40)

    def _irq_info(self, message: Message) -> bytes:
        _, _, index, _ = self._fields(_IRQ_INFO, message)
        if index >= _IRQ_TYPES:
            raise RefusedError(errno.EINVAL, f"interrupt type {index}")
        return _IRQ_INFO.pack(_IRQ_INFO.size, 0, index, 0)

    def _set_irqs(self, message: Message) -> bytes:
        # The device has no PCI interrupts: a client can only ask to remove them all.
        _, _, index, _, count = self._fields(_SET_IRQS, message)
        if index >= _IRQ_TYPES or count:
            raise RefusedError(errno.EINVAL, f"{count} interrupts of type {index}")
        return b""

    def _access(self, message: Message) -> tuple[int, int, int]:
        offset, region, count = self._fields(REGION_ACCESS, message)
        size = self._size(region)
        if not size or not 0 < count <= MAX_TRANSFER or offset + count > size:
            raise RefusedError(errno.EINVAL, f"{count} bytes at {offset:#x} of region {region}")
        if region == _BAR0 and (count not in (4, 8) or offset % count):
            raise RefusedError(errno.EINVAL, f"register access of {count} bytes at {offset:#x}")
        return offset, region, count

    def _region_read(self, message: Message) -> bytes:
        offset, region, count = self._access(message)
        if region == _CONFIG:
            data = self.config.read(offset, count)
        else:
            data = self.registers.read(offset, count).to_bytes(count, "little")
        return REGION_ACCESS.pack(offset, region, count) + data

    def _region_write(self, message: Message) -> bytes:
        offset, region, count = self._access(message)
        data = message.body[REGION_ACCESS.size :]
        if len(data) != count:
            raise RefusedError(errno.EINVAL, f"{len(data)} bytes of data, {count} announced")
        if region == _CONFIG:
            self.config.write(offset, data)
        else:
            self.registers.write(offset, count, int.from_bytes(data, "little"))
        return REGION_ACCESS.pack(offset, region, count)

    def _reset(self, message: Message) -> bytes:
        self.registers.reset()
        return b""


def serve(sock: socket.socket, endpoint: Endpoint, log: Callable[[str], None]) -> None:
    """Answer a client until it hangs up, also if that is before it has read its answers; `log` is
    called with a text for each refused request. Raises FrameError for a message with a wrong
    header."""
    try:
        while True:
            message = receive(sock)
            if message is None:
                return
            try:
                answer = reply(message, endpoint.answer(message))
            except RefusedError as refused:
                log(f"refused: {refused}")
                answer = reply(message, error=refused.errno)
            finally:
                for descriptor in message.descriptors:
                    os.close(descriptor)
            if message.wants_reply:
                sock.sendall(answer)
    except ConnectionError:
        pass
    finally:
        endpoint.memory.clear()
