"""Read the IO Remapping Table: which SMMUs a machine has, and which StreamIDs its PCI devices have.

Source: Arm DEN 0049E, IO Remapping Table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_NODES = struct.Struct("<II")  # count, offset; after the header of an ACPI table
_HEADER_BYTES = 36
#: Type, length, revision, identifier, count of ID mappings, offset of their array in the node.
_NODE = struct.Struct("<BHBIII")
#: Input base, number of IDs minus one, output base, output reference, flags.
_MAPPING = struct.Struct("<5I")
_ROOT_COMPLEX, _SMMUV3, _RESERVED_MEMORY_RANGE = 2, 4, 6
#: The flag of a reserved memory range whose addresses the device need not find one to one.
REMAPPING_PERMITTED = 1
#: The offset of a root complex's PCI segment group number, four bytes.
_SEGMENT = 28
#: The flag of a mapping that gives every input ID the same output ID.
_SINGLE = 1


@dataclass(frozen=True)
class _Mapping:
    """Input IDs `first` to `last` become output IDs from `output` on, at the node at offset
    `reference`."""

    first: int
    last: int
    output: int
    reference: int
    single: bool

    def maps(self, identifier: int) -> bool:
        return self.single or self.first <= identifier <= self.last

    def output_of(self, identifier: int) -> int:
        return self.output if self.single else self.output + identifier - self.first


@dataclass(frozen=True)
class _Node:
    """One node: its offset in the table, its type and identifier, and all its bytes."""

    offset: int
    kind: int
    identifier: int
    content: bytes

    @property
    def segment(self) -> int:
        """Return the PCI segment of a root complex. Raises ValueError if it is cut off."""
        field = self.content[_SEGMENT : _SEGMENT + 4]
        if len(field) < 4:
            raise ValueError(f"the IORT's root complex at offset {self.offset:#x} is cut off")
        return int.from_bytes(field, "little")

    @property
    def mappings(self) -> Iterator[_Mapping]:
        """Yield the ID mappings. Raises ValueError if they are not all inside the node."""
        *_, count, offset = _NODE.unpack_from(self.content)
        if offset + count * _MAPPING.size > len(self.content):
            raise ValueError(
                f"the IORT's node at offset {self.offset:#x} has {len(self.content):#x} bytes, "
                f"but {count} ID mappings at {offset:#x} in it"
            )
        for number in range(count):
            fields = _MAPPING.unpack_from(self.content, offset + number * _MAPPING.size)
            first, more, output, reference, flags = fields
            yield _Mapping(first, first + more, output, reference, bool(flags & _SINGLE))


def smmu_identifiers(table: bytes) -> list[int]:
    """Return the identifiers of the SMMUv3 nodes, in the table's order. Raises ValueError for
    something that is not an IORT, or is cut off."""
    return [node.identifier for node in _nodes(table) if node.kind == _SMMUV3]


def stream_id(table: bytes, segment: int, requester_id: int) -> int:
    """Return the StreamID that an SMMUv3 receives with the requests of a PCI function: the function
    with this 16-bit requester ID in this PCI segment.

    Raises ValueError that says what is missing: the table is not an IORT or is cut off, it has no
    root complex for the segment, or it maps the requester ID to no SMMUv3, or to no StreamID.
    """
    nodes = {node.offset: node for node in _nodes(table)}
    roots = [node for node in nodes.values() if node.kind == _ROOT_COMPLEX]
    # Linux takes the first root complex of a segment too (drivers/acpi/arm64/iort.c).
    root = next((node for node in roots if node.segment == segment), None)
    if root is None:
        has = ", ".join(f"{node.segment:04x}" for node in roots) or "none"
        raise ValueError(
            f"the IORT has no root complex for PCI segment {segment:04x}; it has {has}"
        )
    which = f"requester ID {requester_id:#06x} of PCI segment {segment:04x}"
    mapping = next((one for one in root.mappings if one.maps(requester_id)), None)
    if mapping is None:
        raise ValueError(f"the IORT does not map {which}")
    target = nodes.get(mapping.reference)
    if target is None:
        raise ValueError(
            f"the IORT maps {which} to offset {mapping.reference:#x}, where no node begins"
        )
    if target.kind != _SMMUV3:
        raise ValueError(f"the IORT maps {which} to a node of type {target.kind}, not to an SMMUv3")
    found = mapping.output_of(requester_id)
    if found >> 32:
        raise ValueError(f"the IORT maps {which} to StreamID {found:#x}, which has 32 bits at most")
    return found


def fixed_ranges(table: bytes) -> dict[int, int]:
    """Return the flags of each reserved memory range that a device must find one to one, by their
    offset in the table: 32 bits without REMAPPING_PERMITTED. Raises ValueError as
    `smmu_identifiers`."""
    found = {}
    for node in _nodes(table):
        if node.kind == _RESERVED_MEMORY_RANGE:
            field = node.content[_NODE.size : _NODE.size + 4]
            if len(field) < 4:
                raise ValueError(f"the IORT's node at offset {node.offset:#x} is cut off")
            flags = int.from_bytes(field, "little")
            if not flags & REMAPPING_PERMITTED:
                found[node.offset + _NODE.size] = flags
    return found


def _nodes(table: bytes) -> Iterator[_Node]:
    if len(table) < _HEADER_BYTES + _NODES.size or table[:4] != b"IORT":
        raise ValueError("not an IORT")
    count, offset = _NODES.unpack_from(table, _HEADER_BYTES)
    for _ in range(count):
        # A shorter length than that of the fields that every node has would not lead to the next.
        length = _NODE.size
        if offset + length <= len(table):
            kind, length, _, identifier, _, _ = _NODE.unpack_from(table, offset)
        if offset + length > len(table) or length < _NODE.size:
            raise ValueError(
                f"the IORT has {len(table):#x} bytes, but a node of {length:#x} bytes at offset "
                f"{offset:#x}"
            )
        yield _Node(offset, kind, identifier, table[offset : offset + length])
        offset += length
