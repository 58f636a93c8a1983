"""Every type of event record has the fields that section 7.3 gives it, each in its own bits."""

from __future__ import annotations

import pytest

from harness.smmu.events import CLASSES, EventRecord, EventType, type_name

ALL = 0xFFFF_FFFF_FFFF_FFFF
Words = tuple[int, int, int, int]

FETCH = "reason gpcf fetch_addr"
TRANSLATION = "rnw ind pnu s2 stall stag class nsipa input_addr ipa"
NO_BITS, NO_FETCH, NO_IPA, NO_PAGE = "0-63", "0-2 56-63", "0-11 56-63", "0-11"
#: By type: its name, the fields that it has besides sid and ssid, and the bits of the last three
#: words that are RES0 in it (if a fault is one of stage 2).
TYPES = {
    0x01: ("F_UUT", "rnw ind pnu reason input_addr", "16-32 36-63", "", NO_BITS),
    0x02: ("C_BAD_STREAMID", "", NO_BITS, NO_BITS, NO_BITS),
    0x03: ("F_STE_FETCH", FETCH, "17-63", NO_BITS, NO_FETCH),
    0x04: ("C_BAD_STE", "", NO_BITS, NO_BITS, NO_BITS),
    0x05: ("F_BAD_ATS_TREQ", "requested span input_addr", "4-27 32-63", NO_PAGE, NO_BITS),
    0x06: ("F_STREAM_DISABLED", "", NO_BITS, NO_BITS, NO_BITS),
    0x07: ("F_TRANSL_FORBIDDEN", "rnw input_addr", "0-34 36-63", "", NO_BITS),
    0x08: ("C_BAD_SUBSTREAMID", "", NO_BITS, NO_BITS, NO_BITS),
    0x09: ("F_CD_FETCH", FETCH, "17-63", NO_BITS, NO_FETCH),
    0x0A: ("C_BAD_CD", "", NO_BITS, NO_BITS, NO_BITS),
    0x0B: (
        "F_WALK_EABT",
        f"rnw ind pnu s2 nsipa class input_addr {FETCH}",
        "17-32 36-37 42-63",
        "",
        NO_FETCH,
    ),
    0x10: ("F_TRANSLATION", TRANSLATION, "16-30 32 36-37 42-47", "", NO_IPA),
    0x11: ("F_ADDR_SIZE", TRANSLATION, "16-30 32 36-37 42-47", "", NO_IPA),
    0x12: ("F_ACCESS", TRANSLATION, "16-30 32 36-37 42-47", "", NO_IPA),
    0x13: ("F_PERMISSION", TRANSLATION, "16-30 32 36-37 42-43 45-47", "", NO_IPA),
    0x20: (
        "F_TLB_CONFLICT",
        "rnw ind pnu s2 nsipa reason input_addr ipa",
        "16-32 36-37 40-63",
        "",
        NO_IPA,
    ),
    0x21: ("F_CFG_CONFLICT", "reason", "16-63", NO_BITS, NO_BITS),
    0x24: ("E_PAGE_REQUEST", "requested span input_addr", "0-32 36 40-43 52-63", NO_PAGE, NO_BITS),
    0x25: ("F_VMS_FETCH", FETCH, "17-63", NO_BITS, NO_FETCH),
}
HEADS = {"type", "name", "sid", "ssid", "raw", "reserved"}


def bits(ranges: str) -> int:
    """Return the word with the bits of ranges such as `0-2 56`."""
    ends = ([int(end) for end in one.split("-")] for one in ranges.split())
    return sum(((2 << last) - 1) & ~((1 << first) - 1) for first, *_, last in map(both, ends))


def both(ends: list[int]) -> tuple[int, int]:
    return ends[0], ends[-1]


def fields(words: Words) -> dict[str, object]:
    return EventRecord(words).as_dict()


def test_the_helper_reads_ranges() -> None:
    assert (bits("0-2 56"), bits("63"), bits("0-63"), bits("")) == (7 | 1 << 56, 1 << 63, ALL, 0)


def test_every_type_is_here() -> None:
    assert {int(kind): kind.name for kind in EventType} == {k: v[0] for k, v in TYPES.items()}


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_has_its_fields_and_no_others(kind: int) -> None:
    name, has, *reserved = TYPES[kind]
    found = fields((ALL & ~0xFF | kind, ALL, ALL, ALL))
    assert found["name"] == name
    assert {one for one, value in found.items() if value is not None} - HEADS == set(has.split())
    assert (found["sid"], found["ssid"]) == (0xFFFF_FFFF, 0xF_FFFF)
    # Bits 10:8 have no meaning, and bit 11 is SSV where the SubstreamID need not be valid.
    head = 0xF00 if name == "C_BAD_SUBSTREAMID" else 0x700
    assert found["reserved"] == [head, *map(bits, reserved)]


@pytest.mark.parametrize("kind", TYPES)
def test_what_a_type_defines_is_not_reserved(kind: int) -> None:
    _, _, *reserved = TYPES[kind]
    second, third, fourth = (ALL & ~bits(one) for one in reserved)
    assert EventRecord((kind | ALL & ~0xFFF, second, third, fourth)).reserved is None


@pytest.mark.parametrize("kind", [0x10, 0x11, 0x12, 0x13, 0x20])
def test_the_last_word_of_a_stage_1_fault_is_unknown(kind: int) -> None:
    assert EventRecord((kind, 0, 0, ALL)).reserved is None
    assert EventRecord((kind, 0, 0, ALL)).ipa is None
    assert EventRecord((kind, 1 << 39, 0, ALL)).ipa == 0x00FF_FFFF_FFFF_F000


@pytest.mark.parametrize(
    ("kind", "bit", "field", "unset", "value"),
    [
        (0x01, 35, "rnw", "write", "read"),
        (0x07, 35, "rnw", "write", "read"),
        (0x13, 33, "pnu", False, True),
        (0x13, 34, "ind", False, True),
        (0x13, 38, "nsipa", False, True),
        (0x20, 38, "nsipa", False, True),
        (0x0B, 39, "s2", False, True),
        (0x13, 31, "stall", False, True),
        (0x13, 0, "stag", 0, 1),
        (0x13, 15, "stag", 0, 0x8000),
        (0x0B, 40, "class", "CD", "TTD"),
        (0x0B, 41, "class", "CD", "IN"),
        (0x0B, 16, "gpcf", False, True),
        (0x0B, 15, "reason", 0, 0x8000),
        (0x05, 30, "requested", [], ["R"]),
        (0x05, 29, "requested", [], ["W"]),
        (0x05, 28, "requested", [], ["X"]),
        (0x05, 31, "requested", [], ["PRIV"]),
        (0x05, 0, "span", 0, 1),
        (0x05, 3, "span", 0, 8),
        (0x24, 39, "requested", [], ["pR"]),
        (0x24, 38, "requested", [], ["pW"]),
        (0x24, 37, "requested", [], ["pX"]),
        (0x24, 35, "requested", [], ["uR"]),
        (0x24, 34, "requested", [], ["uW"]),
        (0x24, 33, "requested", [], ["uX"]),
        (0x24, 44, "span", 0, 1),
        (0x24, 51, "span", 0, 128),
    ],
)
def test_a_bit_of_the_second_word_is_of_one_field(
    kind: int, bit: int, field: str, unset: object, value: object
) -> None:
    without, with_it = fields((kind, 0, 0, 0)), fields((kind, 1 << bit, 0, 0))
    assert (without[field], with_it[field]) == (unset, value)
    assert {one for one in without if without[one] != with_it[one]} == {field, "raw"}


def test_addresses_have_the_bits_that_they_have() -> None:
    assert fields((0x10, 0, ALL, 0))["input_addr"] == ALL
    assert fields((0x05, 0, ALL, 0))["input_addr"] == 0xFFFF_FFFF_FFFF_F000
    assert fields((0x24, 0, ALL, 0))["input_addr"] == 0xFFFF_FFFF_FFFF_F000
    assert fields((0x03, 0, 0, ALL))["fetch_addr"] == 0x00FF_FFFF_FFFF_FFF8


def test_a_descriptors_access_is_said_for_its_class_only() -> None:
    assert fields((0x13, 1 << 40 | 1 << 44, 0, 0))["ttrnw"] == "read"
    assert fields((0x13, 1 << 40, 0, 0))["ttrnw"] == "write"
    assert [fields((0x13, n << 40, 0, 0))["ttrnw"] for n in (0, 2, 3)] == [None] * 3
    assert CLASSES == ("CD", "TTD", "IN", "RESERVED")


@pytest.mark.parametrize(
    ("kind", "name", "sid"),
    [
        (0x00, "RESERVED_0x00", 7),
        (0xDF, "RESERVED_0xdf", 7),
        (0xE0, "IMPDEF_0xe0", None),
        (0xEF, "IMPDEF_0xef", None),
        (0xF0, "RESERVED_0xf0", 7),
    ],
)
def test_types_without_a_name(kind: int, name: str, sid: int | None) -> None:
    record = EventRecord((kind | 1 << 11 | 3 << 12 | 7 << 32, 0, 0, 0))
    assert (type_name(kind), record.name, record.sid) == (name, name, sid)
    assert record.ssid == (None if sid is None else 3)
    assert record.reserved is None


@pytest.mark.parametrize("words", [(0, 0, 0), (0, 0, 0, 0, 0), (0, 0, 0, -1), (0, 0, 0, ALL + 1)])
def test_what_is_no_record_is_refused(words: Words) -> None:
    with pytest.raises(ValueError, match="four 64-bit words"):
        EventRecord(words)


def test_the_greatest_words_are_words() -> None:
    assert EventRecord((ALL, ALL, ALL, ALL)).to_bytes() == b"\xff" * 32
    assert EventRecord.from_bytes(bytes(range(32))).words[3] == 0x1F1E_1D1C_1B1A_1918


def test_records_are_made() -> None:
    made = EventRecord.stage1_fault
    kind = EventType.F_PERMISSION
    assert made(kind, sid=0x21, input_addr=5, rnw=True) == EventRecord(
        (0x21_0000_0013, 1 << 35 | 2 << 40, 5, 0)
    )
    assert made(
        kind, sid=1, input_addr=0, rnw=False, klass="TTD", stag=9, pnu=True, ind=True
    ) == EventRecord((0x1_0000_0013, 1 << 33 | 1 << 34 | 1 << 40 | 9, 0, 0))
    with pytest.raises(ValueError, match="F_UUT is not a translation fault"):
        made(EventType.F_UUT, sid=1, input_addr=0, rnw=False)
    configuration = EventRecord.configuration_fault(EventType.C_BAD_CD, sid=0x2100)
    assert configuration == EventRecord((0x2100_0000_000A, 0, 0, 0))


def test_requests_are_made_of_bits() -> None:
    bits_of = EventRecord.requested_bits
    assert bits_of(EventType.F_BAD_ATS_TREQ, ["R", "PRIV"]) == 1 << 30 | 1 << 31
    assert bits_of(EventType.E_PAGE_REQUEST, ["uW", "R"]) == 1 << 34
    assert bits_of(EventType.F_UUT, ["R"]) == 0
    assert EventRecord((0, 0, 0, 0)).requested_bits(EventType.F_BAD_ATS_TREQ, ["X"]) == 1 << 28


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            (0x8_0000_0010, 1 << 41, 0x1000, 0),
            "F_TRANSLATION  sid 0x8  unprivileged data write  iova 0x1000  stage 1  class IN",
        ),
        (
            (0x8_0000_3813, 1 << 31 | 7 << 33 | 3 << 38 | 1 << 40 | 1 << 44 | 5, 0, 0x2000),
            "F_PERMISSION  sid 0x8  ssid 0x3  privileged instruction read  iova 0x0  ipa 0x2000  "
            "stage 2  class TTD  descriptor read  NSIPA  stalled, stag 0x5",
        ),
        ((0x8_0000_0007, 0, 0x1000, 0), "F_TRANSL_FORBIDDEN  sid 0x8  write  iova 0x1000"),
        (
            (0x8_0000_0005, 1 << 30 | 3, 0x1000, 0),
            "F_BAD_ATS_TREQ  sid 0x8  requested R  span 3  iova 0x1000",
        ),
        ((0x24, 0, 0, 0), "E_PAGE_REQUEST  sid 0x0  requested nothing  span 0  iova 0x0"),
        ((0x03, 1 << 16 | 2, 0, 8), "F_STE_FETCH  sid 0x0  fetch 0x8  reason 0x2  GPCF"),
        ((0x0A, 0, 6, 1), "C_BAD_CD  sid 0x0  reserved w2 0x6  reserved w3 0x1"),
        (
            (0xE1, 1, 2, 3),
            "IMPDEF_0xe1  raw 0x00000000000000e1 0x0000000000000001 0x0000000000000002 "
            "0x0000000000000003",
        ),
    ],
)
def test_a_record_is_said_in_words(words: Words, said: str) -> None:
    assert str(EventRecord(words)) == said


@pytest.mark.parametrize("kind", [0x10, 0x11, 0x12, 0x13])
def test_only_what_means_nothing_is_left_out(kind: int) -> None:
    """A fault that is not stalled, of stage 1, without SubstreamID: the rest is as it was."""
    words = (ALL & ~0xFFF | kind, ALL & ~(1 << 31 | 1 << 39), ALL, ALL)
    kept = 0x0000_FFFF_FFFF_0000 & ~(1 << 31 | 1 << 39)
    assert EventRecord(words).defined() == EventRecord((0xFFFF_FFFF_0000_0000 | kind, kept, ALL, 0))
