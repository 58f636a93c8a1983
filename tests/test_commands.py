"""Commands to an SMMU have the words of the specification, and go to the right place in a ring."""

from __future__ import annotations

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
    assert commands.atc_inv(0x2100) == (0x0000_2100_0000_0040, 0x3F)
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
