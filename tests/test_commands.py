"""Commands to an SMMU have the words of the specification, and go to the right place in a ring."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.smmu import commands
from harness.smmu.commands import COMMAND_BYTES, Command, Opcode
from harness.smmu.ring import Ring

WORD = st.integers(0, (1 << 64) - 1)
COMMANDS = st.lists(st.tuples(WORD, WORD), max_size=40)


def test_fields_are_where_the_specification_has_them() -> None:
    assert commands.cfgi_ste(0x2100) == (0x0000_2100_0000_0003, 1)
    assert commands.tlbi_nh_asid(0xABCD) == (0xABCD_0000_0000_0011, 0)
    assert commands.atc_inv(0x2100) == (0x0000_2100_0000_0040, 52)
    assert commands.atc_inv(0x2100, 0x4000_0000, 4) == (0x0000_2100_0000_0040, 0x4000_0004)
    assert commands.sync() == (0x46, 0)


@given(st.sampled_from(Opcode), st.integers(0, (1 << 56) - 1))
def test_an_opcode_is_found_whatever_else_is_said(kind: Opcode, others: int) -> None:
    assert commands.opcode(others << 8 | kind) == kind


@given(COMMANDS)
def test_memory_holds_what_was_put_there(given_: list[Command]) -> None:
    data = commands.encode(given_)
    assert len(data) == len(given_) * COMMAND_BYTES
    assert commands.decode(data) == given_


@given(st.integers(0, 6), st.integers(0, 1 << 20), COMMANDS)
def test_words_go_where_the_ring_is_read(log2size: int, index: int, given_: list[Command]) -> None:
    ring = Ring(0x4000_0000, log2size, COMMAND_BYTES)
    given_ = given_[: ring.entries]
    memory = bytearray(ring.entries * COMMAND_BYTES)

    for address, word in commands.words_at(ring, index, given_):
        at = address - ring.address
        memory[at : at + 8] = word.to_bytes(8, "little")

    pieces = [
        bytes(memory[address - ring.address :][:size])
        for address, size in ring.ranges(index, ring.after(index, len(given_)))
    ]
    assert commands.decode(b"".join(pieces)) == given_


def test_invalidations_have_their_fields_where_the_specification_has_them() -> None:
    assert commands.cfgi_ste(0x2100, leaf=False) == (0x0000_2100_0000_0003, 0)
    assert commands.cfgi_ste_range(0x2100, 8) == (0x0000_2100_0000_0004, 7)
    assert commands.cfgi_ste_range(0, 32) == (0x04, 31), "CMD_CFGI_ALL"
    assert commands.cfgi_cd(0x2100) == (0x0000_2100_0000_0005, 1)
    assert commands.tlbi_nh_all() == (0x10, 0)
    assert commands.tlbi_nsnh_all() == (0x30, 0)
    assert commands.tlbi_nh_va(3, 0x5555_1234) == (0x0003_0000_0000_0012, 0x5555_1001)
    assert commands.tlbi_nh_vaa(0x5555_1234, leaf=False) == (0x13, 0x5555_1000)


@pytest.mark.parametrize(
    ("pages", "scale", "num", "ttl"), [(1, 0, 0, 3), (2, 1, 0, 0), (31, 0, 30, 0), (96, 5, 2, 0)]
)
def test_a_range_is_so_many_pages(pages: int, scale: int, num: int, ttl: int) -> None:
    low, high = commands.tlbi_nh_vaa(0x1000, pages=pages)
    assert (low >> 20 & 0x1F, low >> 12 & 0x1F) == (scale, num)
    assert (num + 1) << scale == pages
    assert (high >> 8 & 3, high >> 10 & 3) == (ttl, 1), "TTL; TG is 4 KiB"


def test_a_range_that_no_command_has() -> None:
    with pytest.raises(ValueError, match="no command invalidates 33 pages"):
        commands.tlbi_nh_va(1, 0x1000, pages=33)
