"""Descriptors of translation tables have their fields where the architecture has them."""

from __future__ import annotations

import pytest

from harness.smmu import tables
from harness.smmu.tables import READ_WRITE, Leaf


def test_a_page_has_the_attributes_of_a_block_and_the_type_of_a_page() -> None:
    descriptor = tables.page_descriptor(0x4567_8000, READ_WRITE | Leaf.READ_ONLY)
    assert descriptor & 0b11 == tables.PAGE == 0b11
    assert descriptor & ~0b11 == 0x4567_8000 | (READ_WRITE | Leaf.READ_ONLY) & ~Leaf.BLOCK
    block = tables.block_descriptor(0x4000_0000, READ_WRITE)
    assert (block & 0b11, block ^ tables.page_descriptor(0x4000_0000, READ_WRITE)) == (0b01, 0b10)


def test_a_page_is_aligned() -> None:
    with pytest.raises(ValueError, match="0x4567a100 is not aligned to a page of 4 KiB"):
        tables.page_descriptor(0x4567_A100, READ_WRITE)
