"""Read which SMMUs the IO Remapping Table names. Source: Arm DEN 0049."""

from __future__ import annotations

import struct

_NODES = struct.Struct("<II")  # count, offset; after the header of an ACPI table
_HEADER_BYTES = 36
_NODE = struct.Struct("<BHBI")  # type, length, revision, identifier
_SMMUV3 = 4


def smmu_identifiers(table: bytes) -> list[int]:
    """Return the identifiers of the SMMUv3 nodes, in the table's order. Raises ValueError for
    something that is not an IORT, or is cut off."""
    if len(table) < _HEADER_BYTES + _NODES.size or table[:4] != b"IORT":
        raise ValueError("not an IORT")
    count, offset = _NODES.unpack_from(table, _HEADER_BYTES)
    found = []
    for _ in range(count):
        if offset + _NODE.size > len(table):
            raise ValueError(
                f"the IORT has {len(table):#x} bytes, but a node at offset {offset:#x}"
            )
        kind, length, _, identifier = _NODE.unpack_from(table, offset)
        if kind == _SMMUV3:
            found.append(identifier)
        offset += length
    return found
