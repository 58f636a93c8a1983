"""The event queue's arithmetic: wrap bit, distances, ranges."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.smmu.events import RECORD_BYTES
from harness.smmu.queue import OVERFLOW_FLAG, QueueGeometry

SIZES = st.integers(0, 19)


def test_register_fields() -> None:
    geometry = QueueGeometry.from_register(0x4000000041000011)
    assert geometry == QueueGeometry(0x41000000, 17)
    assert geometry.entries == 131072


@given(SIZES, st.integers(0, 1 << 21), st.integers(0, 1 << 19))
def test_ranges_cover_each_entry_once_in_order(log2size: int, start: int, count: int) -> None:
    geometry = QueueGeometry(0x1000, log2size)
    assume(count <= geometry.entries)
    start &= geometry.index_mask
    end = start + count & geometry.index_mask

    ranges = geometry.ranges(start, end)

    walked = [
        address + step
        for address, size in ranges
        for step in range(0, size, RECORD_BYTES)
        if count <= 4096
    ]
    slots = [(start + n) % geometry.entries for n in range(count)] if count <= 4096 else []
    assert walked == [geometry.address + slot * RECORD_BYTES for slot in slots]
    assert sum(size for _, size in ranges) == count * RECORD_BYTES
    assert geometry.distance(start, end) == count


def test_full_and_empty_differ_by_the_wrap_bit() -> None:
    geometry = QueueGeometry(0, 3)
    assert geometry.full(prod=0b1010, cons=0b0010)
    assert not geometry.full(prod=0b0010, cons=0b0010)


def test_overflow_flag_is_no_part_of_the_index() -> None:
    assert QueueGeometry(0, 3).distance(1, OVERFLOW_FLAG | 3) == 2


def test_overwritten_entries_are_refused() -> None:
    with pytest.raises(ValueError, match="overwritten"):
        QueueGeometry(0, 3).ranges(0, 9)
