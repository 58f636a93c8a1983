"""Encode as much of ACPI's machine language as one device needs.

Every function returns bytes; terms nest by concatenation:
device(name, name_("_HID", string("…")) + …). Source: ACPI 6.5, chapter 20.
"""

from __future__ import annotations

import struct

ONE = b"\x01"
_SYSTEM_MEMORY, _WORD_ACCESS = 0, 2


def _segment(name: str) -> bytes:
    return name.ljust(4, "_").encode()


def _package_length(size: int) -> bytes:
    """Encode the length of a package whose content has `size` bytes; a package's length includes
    that of its encoding (20.2.4). Raises ValueError for more than 4093 bytes."""
    if size + 1 < 1 << 6:
        return bytes([size + 1])
    if size + 2 < 1 << 12:
        total = size + 2
        return bytes([0x40 | total & 0xF, total >> 4])
    raise ValueError(f"{size} bytes in one AML package")


def _package(opcode: bytes, content: bytes) -> bytes:
    return opcode + _package_length(len(content)) + content


def integer(value: int) -> bytes:
    """Encode a DWordConst, or a QWordConst if the value needs one."""
    if value < 1 << 32:
        return b"\x0c" + struct.pack("<I", value)
    return b"\x0e" + struct.pack("<Q", value)


def string(text: str) -> bytes:
    return b"\x0d" + text.encode() + b"\0"


def buffer(content: bytes) -> bytes:
    return _package(b"\x11", integer(len(content)) + content)


def package(*elements: bytes) -> bytes:
    """Return a package of 255 elements at most."""
    return _package(b"\x12", bytes([len(elements)]) + b"".join(elements))


def scope_sb(content: bytes) -> bytes:
    return _package(b"\x10", b"\\_SB_" + content)


def scope_sb_device(device: str, content: bytes) -> bytes:
    """Encode a Scope that adds to a device of another table, which is directly in \\_SB."""
    dual_name = b"\\\x2e"
    return _package(b"\x10", dual_name + b"_SB_" + _segment(device) + content)


def device(name: str, content: bytes) -> bytes:
    return _package(b"\x5b\x82", _segment(name) + content)


def name_(name: str, value: bytes) -> bytes:
    return b"\x08" + _segment(name) + value


def method(name: str, body: bytes) -> bytes:
    """Encode a method without arguments."""
    return _package(b"\x14", _segment(name) + b"\0" + body)


def memory_fields(
    region: str, address: int, size: int, fields: dict[str, tuple[int, int]]
) -> bytes:
    """Encode an OperationRegion in memory and a Field over it. `fields` maps names to (byte offset,
    bits), with ascending offsets."""
    out = (
        b"\x5b\x80" + _segment(region) + bytes([_SYSTEM_MEMORY]) + integer(address) + integer(size)
    )
    listed, at = b"", 0
    for name, (offset, bits) in fields.items():
        if offset * 8 > at:
            listed += b"\0" + _field_length(offset * 8 - at)
        listed += _segment(name) + _field_length(bits)
        at = offset * 8 + bits
    return out + _package(b"\x5b\x81", _segment(region) + bytes([_WORD_ACCESS]) + listed)


def _field_length(bits: int) -> bytes:
    """Encode a field's length, in bits: as a package's, but without that of the encoding."""
    if bits < 1 << 6:
        return bytes([bits])
    return bytes([0x40 | bits & 0xF, bits >> 4])


def dword_field(source: str, offset: int, name: str) -> bytes:
    """Encode CreateDWordField, which names the four bytes at `offset` of the buffer `source`."""
    return b"\x8a" + _segment(source) + integer(offset) + _segment(name)


def store(value: bytes, target: str) -> bytes:
    return b"\x70" + value + _segment(target)


def and_(left: bytes, right: bytes, target: str = "") -> bytes:
    """Encode And; without a `target` the value is only used."""
    return b"\x7b" + left + right + _target(target)


def or_(left: bytes, right: bytes, target: str = "") -> bytes:
    """Encode Or; without a `target` the value is only used."""
    return b"\x7d" + left + right + _target(target)


def shift_left(value: bytes, bits: bytes, target: str = "") -> bytes:
    """Encode ShiftLeft; without a `target` the value is only used."""
    return b"\x79" + value + bits + _target(target)


def add(left: bytes, right: bytes, target: str = "") -> bytes:
    """Encode Add; without a `target` the value is only used."""
    return b"\x72" + left + right + _target(target)


def subtract(left: bytes, right: bytes, target: str = "") -> bytes:
    """Encode Subtract; without a `target` the value is only used."""
    return b"\x74" + left + right + _target(target)


def _target(name: str) -> bytes:
    return _segment(name) if name else b"\0"


def variable(name: str) -> bytes:
    return _segment(name)


def return_(value: bytes) -> bytes:
    return b"\xa4" + value


# -- resources (6.4) -------------------------------------------------------------------------

#: Byte offsets of the lowest address, the highest, and the size in a memory descriptor that stands
#: first in a template.
MEMORY_MINIMUM, MEMORY_MAXIMUM, MEMORY_SIZE = 10, 14, 22
_MEMORY_RANGE, _BUS_RANGE = 0, 2
_PRODUCER, _CONSUMER, _FIXED, _READ_WRITE = 0, 1, 3 << 2, 1
_EDGE, _EXCLUSIVE_HIGH = 1 << 1, 0
END = b"\x79\0"


def dword_memory(size: int) -> bytes:
    """Encode a DWordMemory descriptor of a register window of `size` bytes at address 0; fill in
    the address at MEMORY_MINIMUM and MEMORY_MAXIMUM."""
    return _dword_memory(_CONSUMER, size)


def dword_memory_window() -> bytes:
    """Encode a DWordMemory descriptor of addresses that a bridge passes on to its devices; fill in
    MEMORY_MINIMUM, MEMORY_MAXIMUM and MEMORY_SIZE."""
    return _dword_memory(_PRODUCER, 1)


def _dword_memory(use: int, size: int) -> bytes:
    flags = bytes([_MEMORY_RANGE, use | _FIXED, _READ_WRITE])
    body = flags + struct.pack("<5I", 0, 0, size - 1, 0, size)
    return b"\x87" + struct.pack("<H", len(body)) + body


def bus_number(bus: int) -> bytes:
    """Encode a WordBusNumber descriptor of one bus behind a host bridge."""
    flags = bytes([_BUS_RANGE, _PRODUCER | _FIXED, 0])
    body = flags + struct.pack("<5H", 0, bus, bus, 0, 1)
    return b"\x88" + struct.pack("<H", len(body)) + body


def edge_interrupt(number: int) -> bytes:
    """Encode an Extended Interrupt descriptor: edge-triggered, active high, exclusive, consumed."""
    body = bytes([_CONSUMER | _EDGE | _EXCLUSIVE_HIGH, 1]) + struct.pack("<I", number)
    return b"\x89" + struct.pack("<H", len(body)) + body
