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


def test_the_other_invalidations_have_their_fields_there_too() -> None:
    assert commands.cfgi_cd(0x2100, leaf=False) == (0x0000_2100_0000_0005, 0)
    assert commands.cfgi_all() == (0x04, 31)
    assert commands.cfgi_cd_all(0x2100) == (0x0000_2100_0000_0006, 0)
    assert commands.atc_inv(0x2100, 0x4000_0FFF, 0) == (0x0000_2100_0000_0040, 0x4000_0000)
    assert commands.tlbi_nh_vaa(0x5555_1234) == (0x13, 0x5555_1001)
    assert commands.tlbi_nh_va(3, 0x5555_1234, leaf=False) == (0x0003_0000_0000_0012, 0x5555_1000)


def test_a_number_of_pages_is_an_odd_number_and_a_scale() -> None:
    assert commands.tlbi_nh_vaa(0x1000, pages=31 << 4)[0] == 0x0000_0000_0041_E013
    assert commands.tlbi_nh_vaa(0x1000, pages=32)[0] == 0x0000_0000_0050_0013
    assert commands.tlbi_nh_vaa(0x1001, leaf=False, pages=2) == (0x0010_0013, 0x1400)


#: What `describe` says of each opcode of chapter 4, with all bits set that are an operand: each
#: field has another value.
LOW, HIGH = 0x1234_5678_0ABC_DF00, 0x0FED_CBA9_8765_4FC1


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0x01, "CMD_PREFETCH_CONFIG  sid 0x12345678  ssid 0xabcd"),
        (0x02, "CMD_PREFETCH_ADDR  sid 0x12345678  ssid 0xabcd"),
        (0x03, "CMD_CFGI_STE  sid 0x12345678  leaf"),
        (0x04, "CMD_CFGI_STE_RANGE  sid 0x12345678  2^2 streams"),
        (0x05, "CMD_CFGI_CD  sid 0x12345678  ssid 0xabcd  leaf"),
        (0x06, "CMD_CFGI_CD_ALL  sid 0x12345678"),
        (0x07, "CMD_CFGI_VMS_PIDM"),
        (0x10, "CMD_TLBI_NH_ALL  vmid 0x5678"),
        (0x11, "CMD_TLBI_NH_ASID  vmid 0x5678  asid 0x1234"),
        (0x12, "CMD_TLBI_NH_VA  vmid 0x5678  asid 0x1234  address 0xfedcba987654000"),
        (0x13, "CMD_TLBI_NH_VAA  vmid 0x5678  address 0xfedcba987654000"),
        (0x18, "CMD_TLBI_EL3_ALL"),
        (0x1A, "CMD_TLBI_EL3_VA  address 0xfedcba987654000"),
        (0x20, "CMD_TLBI_EL2_ALL"),
        (0x21, "CMD_TLBI_EL2_ASID  asid 0x1234"),
        (0x22, "CMD_TLBI_EL2_VA  asid 0x1234  address 0xfedcba987654000"),
        (0x23, "CMD_TLBI_EL2_VAA  address 0xfedcba987654000"),
        (0x28, "CMD_TLBI_S12_VMALL  vmid 0x5678"),
        (0x2A, "CMD_TLBI_S2_IPA  vmid 0x5678  ipa 0xdcba987654000"),
        (0x30, "CMD_TLBI_NSNH_ALL"),
        (
            0x40,
            "CMD_ATC_INV  sid 0x12345678  ssid 0xabcd  address 0xfedcba987654000  size 2^1 pages",
        ),
        (0x41, "CMD_PRI_RESP  sid 0x12345678  ssid 0xabcd"),
        (0x44, "CMD_RESUME  sid 0x12345678  stag 0x4fc1"),
        (0x45, "CMD_STALL_TERM  sid 0x12345678"),
        (0x46, "CMD_SYNC"),
    ],
)
def test_a_command_is_described_by_its_operands(number: int, said: str) -> None:
    assert commands.describe((LOW | number, HIGH)) == said


def test_every_opcode_is_described() -> None:
    assert len(Opcode) == 25


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ((0x7_0000_0340, 0x34), "CMD_ATC_INV  sid 0x7  address 0x0  size 2^52 pages"),
        # SSV is bit 11; SubstreamID is in bits 31:12.
        ((0x7_0000_1740, 0x3F), "CMD_ATC_INV  sid 0x7  address 0x0  size 2^63 pages"),
        ((0xFFFF_F841, 0), "CMD_PRI_RESP  sid 0x0  ssid 0xfffff"),
        ((0x7_0000_0003, 0x2), "CMD_CFGI_STE  sid 0x7  all levels"),
        ((0x7_0000_1005, 0x2), "CMD_CFGI_CD  sid 0x7  ssid 0x1  all levels"),
        ((0x7_0000_0004, 0x1F), "CMD_CFGI_STE_RANGE  sid 0x7  all streams"),
        ((0x7_0000_0004, 0x1E), "CMD_CFGI_STE_RANGE  sid 0x7  2^31 streams"),
        ((0x7_0000_0044, 0xFFFF_FFFF), "CMD_RESUME  sid 0x7  stag 0xffff"),
        ((0xFFFF_FFFF_0000_0010, 0), "CMD_TLBI_NH_ALL  vmid 0xffff"),
        ((0x2A, (1 << 64) - 1), "CMD_TLBI_S2_IPA  vmid 0x0  ipa 0xffffffffff000"),
        (
            (0x1_0000_00FF, 0x2),
            "an unknown command, opcode 0xff  raw 0x00000001000000ff 0x0000000000000002",
        ),
    ],
)
def test_a_field_has_its_own_bits_only(command: Command, said: str) -> None:
    assert commands.describe(command) == said


def test_an_error_has_the_name_of_its_code() -> None:
    names = {code: name for code, (name, _) in commands.CERRORS.items()}
    assert names == {0: "CERROR_NONE", 1: "CERROR_ILL", 2: "CERROR_ABT", 3: "CERROR_ATC_INV_SYNC"}
