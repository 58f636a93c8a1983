"""Descriptors of translation tables have their fields where the architecture has them."""

from __future__ import annotations

import pytest

from harness.smmu import tables
from harness.smmu.tables import READ_WRITE, Leaf, StreamTable


def test_a_page_has_the_attributes_of_a_block_and_the_type_of_a_page() -> None:
    descriptor = tables.page_descriptor(0x4567_8000, READ_WRITE | Leaf.READ_ONLY)
    assert descriptor & 0b11 == tables.PAGE == 0b11
    assert descriptor & ~0b11 == 0x4567_8000 | (READ_WRITE | Leaf.READ_ONLY) & ~Leaf.BLOCK
    block = tables.block_descriptor(0x4000_0000, READ_WRITE)
    assert (block & 0b11, block ^ tables.page_descriptor(0x4000_0000, READ_WRITE)) == (0b01, 0b10)


def test_a_page_is_aligned() -> None:
    with pytest.raises(ValueError, match="0x4567a100 is not aligned to a page of 4 KiB"):
        tables.page_descriptor(0x4567_A100, READ_WRITE)


def test_a_linear_stream_table_has_an_ste_of_64_bytes_for_each_stream() -> None:
    table = StreamTable.from_registers(0x4000_0000_4567_8040, 0x0000_0008)
    assert table == StreamTable(0x4567_8040, None)
    assert table.level1(5) is None
    assert table.ste(0x105) == 0x4567_8040 + 0x4140


def test_a_stream_table_of_two_levels_has_a_descriptor_of_8_bytes_for_each_span() -> None:
    table = StreamTable.from_registers(0x4000_0000_4567_8000, 1 << 16 | 8 << 6 | 16)
    assert table == StreamTable(0x4567_8000, 8)
    assert table.level1(0x1_2345) == 0x4567_8000 + 0x123 * 8
    # A descriptor has its Span in bits 4:0, and an address whose lower bits are zero.
    assert table.ste(0x1_2345, 0x4570_0009) == 0x4570_0000 + 0x45 * 64
    assert table.ste(0x1_2345) == 0x45 * 64


@pytest.mark.parametrize("cfg", [0 << 16 | 8 << 6, 2 << 16 | 8 << 6, 3 << 16 | 8 << 6])
def test_only_format_1_has_two_levels(cfg: int) -> None:
    assert StreamTable.from_registers(0, cfg).split is None


def test_a_split_has_five_bits() -> None:
    assert StreamTable.from_registers(0, 1 << 16 | 0b11111 << 6 | 0b111111).split == 31
    assert StreamTable.from_registers(0, 1 << 16 | 1 << 11).split == 0


ALL = 0xFFFF_FFFF_FFFF_FFFF


def test_an_address_has_the_bits_that_the_specification_gives_it() -> None:
    assert StreamTable.from_registers(ALL, 0).address == 0x000F_FFFF_FFFF_FFC0
    assert StreamTable(0, 8).ste(0, ALL) == 0x000F_FFFF_FFFF_FFC0
    assert tables.context_descriptor(ALL) == 0x000F_FFFF_FFFF_FFC0
    assert tables.root_table(ALL) == 0x0000_FFFF_FFFF_F000
    assert tables.table_descriptor(ALL) == 0x0000_FFFF_FFFF_F003
    assert tables.table_descriptor(0) == 0b11


def test_a_context_descriptor_has_its_asid_on_top_and_t0sz_at_the_bottom() -> None:
    cd0 = 0x1234_8000_0000_00E0 | 16
    assert tables.asid(cd0) == 0x1234
    assert tables.input_bits(0x1234_8000_0000_0000 | 16) == 48
    assert tables.input_bits(ALL) == 1


def test_fields_are_where_the_specification_has_them() -> None:
    assert (tables.STE_BYTES, tables.CD_BYTES, tables.L1STD_BYTES) == (64, 64, 8)
    assert (tables.STE0_VALID, tables.STE0_S1CDMAX) == (0x1, 0xF800_0000_0000_0000)
    assert (tables.STE0_CONFIG, tables.STE0_CONFIG_S2) == (0b1110, 0b1100)
    assert tables.CD0_VALID == 0x8000_0000
    assert (tables.LEVEL1_BLOCK, tables.LEVEL0_SPAN) == (0x4000_0000, 0x80_0000_0000)
    # AP[2] and AP[1], SH, AF and nG of VMSAv8-64.
    assert (Leaf.READ_ONLY, Leaf.UNPRIVILEGED) == (0x80, 0x40)
    assert (Leaf.INNER_SHAREABLE, Leaf.ACCESSED, Leaf.NOT_GLOBAL) == (0x300, 0x400, 0x800)
    assert READ_WRITE == 0xF41


def test_a_block_is_aligned() -> None:
    assert tables.block_descriptor(0x8000_0000, Leaf.BLOCK) == 0x8000_0001
    with pytest.raises(ValueError, match="0x60000000 is not aligned to a 1 GiB block"):
        tables.block_descriptor(0x6000_0000, READ_WRITE)
    with pytest.raises(ValueError, match="0x40000001 is not aligned"):
        tables.block_descriptor(0x4000_0001, READ_WRITE)


def test_a_page_may_be_anywhere_among_pages() -> None:
    assert tables.page_descriptor(0x4567_9000, Leaf.BLOCK) == 0x4567_9003
    with pytest.raises(ValueError, match="0x4567a001 is not aligned"):
        tables.page_descriptor(0x4567_A001, READ_WRITE)
