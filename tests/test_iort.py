"""StreamIDs are read from a machine's IORT as Linux reads them, and what is missing is named."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.smmu.iort import fixed_ranges, smmu_identifiers, stream_id
from harness.virtual.acpi import iort
from harness.virtual.topology import Topology

HEADER, NODE, MAPPING = 48, 16, 20
Reader = Callable[[bytes], object]
ITS, SMMUV3 = 0, 4


def node(kind: int, body: bytes = b"", *mappings: tuple[int, ...]) -> bytes:
    """Return one node with its ID mappings behind `body`."""
    maps = b"".join(struct.pack("<5I", *mapping) for mapping in mappings)
    length = NODE + len(body) + len(maps)
    return struct.pack("<BHBIII", kind, length, 0, 0, len(mappings), NODE + len(body)) + body + maps


def root_complex(segment: int, *mappings: tuple[int, ...]) -> bytes:
    return node(2, struct.pack("<QIII", 0, 0, segment, 0), *mappings)


def table(*nodes: bytes) -> bytes:
    content = struct.pack("<III", len(nodes), HEADER, 0) + b"".join(nodes)
    return struct.pack("<4sI28x", b"IORT", 36 + len(content)) + content


#: An ITS at offset 0x30, an SMMUv3 at 0x40, and two segments.
FIRST = HEADER
SECOND = FIRST + NODE
SINGLE = 1
SEGMENTS = table(
    node(ITS),
    node(SMMUV3),
    root_complex(0, (0, 0x7FF, 0, FIRST, 0), (0x800, 0xFF, 0x1_0000, SECOND, 0)),
    root_complex(9, (0x5, 0, 0x42, SECOND, SINGLE)),
    root_complex(12, (0, 0, 0, 0x33, 0)),
    root_complex(9, (0, 0xFFFF, 0, SECOND, 0)),
)


@pytest.mark.parametrize(
    ("segment", "requester_id", "expected"),
    [
        pytest.param(0, 0x800, 0x1_0000, id="first-of-a-range"),
        pytest.param(0, 0x8FF, 0x1_00FF, id="last-of-a-range"),
        pytest.param(9, 0x100, 0x42, id="single-mapping-and-first-root-complex"),
    ],
)
def test_stream_id_is_the_mappings_output(segment: int, requester_id: int, expected: int) -> None:
    assert stream_id(SEGMENTS, segment, requester_id) == expected


@pytest.mark.parametrize(
    ("segment", "requester_id", "said"),
    [
        (1, 0x100, "no root complex for PCI segment 0001; it has 0000, 0009, 000c, 0009"),
        (0, 0x900, "does not map requester ID 0x0900 of PCI segment 0000"),
        (0, 0x7FF, "maps requester ID 0x07ff of PCI segment 0000 to a node of type 0, not to an"),
        (12, 0, "maps requester ID 0x0000 of PCI segment 000c to offset 0x33, where no node"),
    ],
)
def test_what_is_missing_is_named(segment: int, requester_id: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stream_id(SEGMENTS, segment, requester_id)


def test_a_table_without_root_complex_says_so() -> None:
    with pytest.raises(ValueError, match="segment 0000; it has none"):
        stream_id(table(node(SMMUV3)), 0, 0)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        pytest.param(b"", "not an IORT", id="nothing"),
        pytest.param(SEGMENTS[:-1], "but a node of 0x38 bytes", id="last-node"),
        pytest.param(SEGMENTS[: FIRST + 1], "but a node of 0x10 bytes at offset 0x30", id="header"),
        pytest.param(table(node(2, bytes(8))), "root complex at offset 0x30 is cut off", id="root"),
        pytest.param(table(bytes(NODE)), "a node of 0x0 bytes at offset 0x30", id="no-length"),
        pytest.param(
            table(struct.pack("<BHBIII", 2, 36, 0, 0, 2, 36) + bytes(20)),
            "has 0x24 bytes, but 2 ID mappings at 0x24",
            id="mappings",
        ),
    ],
)
def test_a_table_that_is_cut_off_is_refused(broken: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stream_id(broken, 0, 0)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("length", [0, 1, NODE - 1, 0xFFFF])
@pytest.mark.parametrize("readers", [smmu_identifiers, fixed_ranges])
def test_lengths_that_lead_nowhere_end_at_once(length: int, readers: Reader) -> None:
    """However many nodes the table says to have."""
    content = (
        struct.pack("<III", 0xFFFF_FFFF, HEADER, 0) + struct.pack("<BH", 4, length) + bytes(99)
    )
    broken = struct.pack("<4sI28x", b"IORT", 36 + len(content)) + content
    with pytest.raises(ValueError, match=f"a node of {length:#x} bytes at offset 0x30"):
        readers(broken)


def test_a_stream_id_has_32_bits() -> None:
    """A table that maps an ID beyond is wrong."""
    high = table(node(SMMUV3), root_complex(0, (0, 0xFFFF, 0xFFFF_FFF0, HEADER, 0)))
    assert stream_id(high, 0, 0xF) == 0xFFFF_FFFF
    with pytest.raises(ValueError, match=r"requester ID 0x0010 .* to StreamID 0x100000000"):
        stream_id(high, 0, 0x10)


def identified(kind: int, identifier: int) -> bytes:
    return struct.pack("<BHBIII", kind, NODE, 0, identifier, 0, 0)


def test_smmus_are_named_by_their_identifiers_in_order() -> None:
    nodes = (identified(SMMUV3, 7), identified(ITS, 8), identified(3, 9), identified(SMMUV3, 5))
    assert smmu_identifiers(table(*nodes)) == [7, 5]


def test_the_shortest_table_has_no_nodes() -> None:
    shortest = b"IORT" + bytes(32) + struct.pack("<II", 0, HEADER)
    assert smmu_identifiers(shortest) == []
    for wrong in (shortest[:-1], b"SPCR" + shortest[4:]):
        with pytest.raises(ValueError, match="not an IORT"):
            smmu_identifiers(wrong)


def test_a_range_is_fixed_unless_its_flags_permit_to_remap_it() -> None:
    def memory(flags: int) -> bytes:
        return node(6, struct.pack("<II", flags, 0xFFFF_FFFF))

    found = fixed_ranges(table(memory(4), memory(5), node(ITS, bytes(8)), memory(2)))
    assert found == {FIRST + 16: 4, FIRST + 3 * 24 + 16: 2}
    assert fixed_ranges(table(node(6, bytes(4)))) == {FIRST + 16: 0}
    with pytest.raises(ValueError, match="node at offset 0x30 is cut off"):
        fixed_ranges(table(node(6, bytes(3))))


def test_the_segment_may_be_the_last_that_a_root_complex_says() -> None:
    short = node(2, struct.pack("<QII", 0, 0, 0x5), (1, 0, 9, FIRST, 0))
    assert stream_id(table(node(SMMUV3), short), 5, 1) == 9
    cut = struct.pack("<BHBIII", 2, 31, 0, 0, 0, 0) + bytes(15)
    with pytest.raises(ValueError, match="root complex at offset 0x30 is cut off"):
        stream_id(table(cut), 0, 0)


def test_only_its_own_flag_makes_a_mapping_single() -> None:
    two = table(node(SMMUV3), root_complex(0, (5, 1, 0x40, FIRST, 2), (0, 9, 0x70, FIRST, 3)))
    assert [stream_id(two, 0, number) for number in (5, 6, 7)] == [0x40, 0x41, 0x70]


@pytest.mark.parametrize("smmus", [1, 4])
def test_the_virtual_hosts_table_maps_one_to_one(smmus: int) -> None:
    nodes = Topology(smmus=smmus).smmu_nodes()
    for smmu in nodes:
        for requester_id in (smmu.buses.start << 8, (smmu.buses.stop << 8) - 1):
            assert stream_id(iort(nodes), 0, requester_id) == requester_id
    with pytest.raises(ValueError, match="node of type 0"):
        stream_id(iort(nodes), 0, 0x18)


def read(foreign: bytes, segment: int, requester_id: int) -> None:
    """Read a table. Raises whatever the readers raise, except the ValueError they document."""
    readers: list[Reader] = [
        smmu_identifiers,
        fixed_ranges,
        lambda table: stream_id(table, segment, requester_id),
    ]
    for reader in readers:
        with contextlib.suppress(ValueError):
            reader(foreign)


IDS = st.integers(0, 0xFFFF)


@given(st.binary(max_size=200).map(lambda tail: b"IORT" + tail), IDS, IDS)
def test_foreign_bytes_raise_only_what_is_documented(data: bytes, segment: int, rid: int) -> None:
    read(data, segment, rid)


@given(st.data(), st.sampled_from([0, 9, 12]), IDS)
def test_damaged_tables_raise_only_what_is_documented(
    data: st.DataObject, segment: int, rid: int
) -> None:
    damaged = bytearray(SEGMENTS)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(damaged)))
    read(bytes(damaged[:end]), segment, rid)
