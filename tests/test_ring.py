"""The arithmetic of a circular queue is right: wrap bit, distances, entries, ranges."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.smmu.cmdqv import vcmdq_ring
from harness.smmu.commands import COMMAND_BYTES, cmdq_ring
from harness.smmu.events import RECORD_BYTES
from harness.smmu.ring import Ring

SIZES = st.integers(0, 19)
#: Any base register, also with bits that are no part of the address: allocation hint and reserved.
BASE = st.integers(0, (1 << 64) - 1)


def test_register_fields() -> None:
    ring = Ring.from_base(0x4000000041000011, RECORD_BYTES)
    assert ring == Ring(0x41000000, 17, RECORD_BYTES)
    assert ring.entries == 131072


@given(BASE)
def test_an_address_has_52_bits_in_an_smmu_and_48_in_a_cmdqv(base: int) -> None:
    of_smmu, of_cmdqv = cmdq_ring(base), vcmdq_ring(base)
    assert of_smmu.base == base & 0xF_FFFF_FFFF_FFFF
    assert of_cmdqv.base == base & 0xFFFF_FFFF_FFFF
    assert of_smmu.entry_bytes == of_cmdqv.entry_bytes == COMMAND_BYTES


@given(SIZES, st.integers(0, 1 << 21), st.integers(0, 1 << 19))
def test_ranges_cover_each_entry_once_in_order(log2size: int, start: int, count: int) -> None:
    ring = Ring(0x1000, log2size, RECORD_BYTES)
    assume(count <= ring.entries)
    start &= ring.index_mask
    end = start + count & ring.index_mask

    ranges = ring.ranges(start, end)

    walked = [
        address + step
        for address, size in ranges
        for step in range(0, size, RECORD_BYTES)
        if count <= 4096
    ]
    slots = [(start + n) % ring.entries for n in range(count)] if count <= 4096 else []
    assert walked == [ring.address + slot * RECORD_BYTES for slot in slots]
    assert sum(size for _, size in ranges) == count * RECORD_BYTES
    assert ring.distance(start, end) == count
    assert ring.after(start, count) == end


@given(SIZES, st.integers(0, 1 << 21), st.integers(0, 1 << 10))
def test_an_entry_is_where_ranges_find_it(log2size: int, start: int, count: int) -> None:
    ring = Ring(0x1000, log2size, COMMAND_BYTES)
    assume(0 < count <= ring.entries)
    (first, _), *_ = ring.ranges(start, ring.after(start, count))
    assert ring.entry(start) == first
    assert ring.entry(start + ring.entries) == first


def test_full_and_empty_differ_by_the_wrap_bit() -> None:
    ring = Ring(0, 3, RECORD_BYTES)
    assert ring.full(prod=0b1010, cons=0b0010)
    assert not ring.full(prod=0b0010, cons=0b0010)


def test_overflow_flag_is_no_part_of_the_index() -> None:
    assert Ring(0, 3, RECORD_BYTES).distance(1, 1 << 31 | 3) == 2


def test_a_whole_queue_is_one_range_or_two() -> None:
    ring = Ring(0x1000, 3, RECORD_BYTES)
    assert ring.ranges(0, 8) == [(0x1000, 256)]
    assert ring.ranges(3, 11) == [(0x1060, 160), (0x1000, 96)]
    assert ring.ranges(9, 11) == [(0x1020, 64)]
    assert ring.ranges(5, 5) == []


def test_an_index_has_one_bit_more_than_an_entry() -> None:
    ring = Ring(0x1000, 3, RECORD_BYTES)
    assert (ring.index_mask, ring.index(0xFFFF_FFFF), ring.index(0x10)) == (0xF, 0xF, 0)
    assert (ring.after(14, 3), ring.entry(0xF)) == (1, 0x10E0)
    assert Ring(0, 0, RECORD_BYTES).entries == 1


def test_overwritten_entries_are_refused() -> None:
    with pytest.raises(ValueError, match="overwritten"):
        Ring(0, 3, RECORD_BYTES).ranges(0, 9)
