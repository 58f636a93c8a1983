"""The bytes, words and fields of an event record agree, for every type of event."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.smmu.decode.found import Sighting
from harness.smmu.decode.output import event_json, event_text
from harness.smmu.events import EventRecord, EventType, decode_records, type_name

WORD = st.integers(0, (1 << 64) - 1)
#: Most numbers have no name: each that has one is as likely as the two that have none.
FIRST_WORD = st.builds(
    lambda word, kind: word & ~0xFF | kind, WORD, st.sampled_from([*EventType, 0x77, 0xE3])
)
RECORDS = st.tuples(FIRST_WORD, WORD, WORD, WORD).map(EventRecord)

#: A real record, taken from a nested SMMUv3: a 4-byte write to 0x12345000 by StreamID 8.
SEEN = EventRecord((0x0000000800000010, 0x0000020000000000, 0x12345000, 0))


@given(RECORDS)
def test_bytes_round_trip(record: EventRecord) -> None:
    assert EventRecord.from_bytes(record.to_bytes()) == record


@given(RECORDS)
def test_json_is_the_dictionary(record: EventRecord) -> None:
    shown = json.loads(event_json(Sighting(1, record.words)))
    assert shown.items() >= record.as_dict().items()


@given(RECORDS)
def test_text_is_the_records(record: EventRecord) -> None:
    """What is made once for many events is the same as what each says."""
    said = event_text(Sighting(7, record.words, client="none"))
    assert said == f"{record}  client none  line 7"


@given(RECORDS)
def test_every_record_can_be_said(record: EventRecord) -> None:
    assert str(record).startswith(record.name)


def test_a_record_that_was_seen() -> None:
    assert (
        EventRecord.stage1_fault(EventType.F_TRANSLATION, sid=8, input_addr=0x12345000, rnw=False)
        == SEEN
    )
    assert SEEN.as_dict() == {
        "type": 0x10,
        "name": "F_TRANSLATION",
        "sid": 8,
        "ssid": None,
        "rnw": "write",
        "ind": False,
        "pnu": False,
        "s2": False,
        "stall": False,
        "stag": 0,
        "class": "IN",
        "ttrnw": None,
        "nsipa": False,
        "reason": None,
        "gpcf": None,
        "requested": None,
        "span": None,
        "input_addr": 0x12345000,
        "ipa": None,
        "fetch_addr": None,
        "reserved": None,
        "raw": [0x800000010, 0x20000000000, 0x12345000, 0],
    }


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ((0x10 | 1 << 11 | 0x54321 << 12, 0, 0, 0), "ssid", 0x54321),
        ((0x10 | 0x54321 << 12, 0, 0, 0), "ssid", None),
        ((0x13, 1 << 35, 0, 0), "rnw", "read"),
        ((0x13, 1 << 34, 0, 0), "ind", True),
        ((0x13, 1 << 33, 0, 0), "pnu", True),
        ((0x13, 1 << 31 | 0xABCD, 0, 0), "stall", True),
        ((0x13, 1 << 31 | 0xABCD, 0, 0), "stag", 0xABCD),
        ((0x13, 0, 0, 0), "class", "CD"),
        ((0x13, 1 << 40, 0, 0), "class", "TTD"),
        ((0x10, 1 << 39, 0, 0x12345678_9ABC), "ipa", 0x123456789000),
        ((0x10, 0, 0, 0x123456789ABC), "ipa", None),
        ((0x09, 0, 0, 0x123456789ABF), "fetch_addr", 0x123456789AB8),
        ((0x08 | 7 << 12, 0, 0, 0), "ssid", 7),
        ((0x08 | 7 << 12 | 1 << 11, 0, 0, 0), "reserved", [1 << 11, 0, 0, 0]),
        ((0x20, 1 << 39, 0, 0x12345ABC), "ipa", 0x12345000),
        ((0x20, 0, 0, 0x12345ABC), "ipa", None),
        ((0x20, 0xABCD, 0, 0), "reason", 0xABCD),
        ((0x05, 3 << 29 | 3, 0x1ABC, 0), "input_addr", 0x1000),
        ((0x05, 3 << 29 | 3, 0x1000, 0), "requested", ["R", "W"]),
        ((0x05, 3 << 29 | 3, 0x1000, 0), "span", 3),
        ((0x24, 1 << 35 | 1 << 38 | 9 << 44, 0x1ABC, 0), "input_addr", 0x1000),
        ((0x24, 1 << 35 | 1 << 38 | 9 << 44, 0x1000, 0), "requested", ["pW", "uR"]),
        ((0x24, 1 << 35 | 1 << 38 | 9 << 44, 0x1000, 0), "span", 9),
        ((0x13, 1 << 40 | 1 << 44, 0, 0), "ttrnw", "read"),
        ((0x13, 1 << 40, 0, 0), "ttrnw", "write"),
        ((0x13, 2 << 40 | 1 << 44, 0, 0), "ttrnw", None),
        ((0x10, 1 << 40 | 1 << 44, 0, 0), "ttrnw", None),
        ((0x10, 1 << 38, 0, 0), "nsipa", True),
        ((0x03, 0x1_0007, 0, 0), "reason", 7),
        ((0x03, 0x1_0007, 0, 0), "gpcf", True),
        ((0x21, 0x7, 0, 0), "reason", 7),
        ((0x0A, 0x7E, 0x5000, 0), "reserved", [0, 0x7E, 0x5000, 0]),
        ((0x10 | 1 << 8, 0, 0, 0), "reserved", [1 << 8, 0, 0, 0]),
        ((0x10, 0, 0, 0x5000), "reserved", None),
        ((0x10, 1 << 39, 0, 0x5), "reserved", [0, 0, 0, 0x5]),
        ((0x09, 1 << 35, 5, 0), "rnw", None),
        ((0x09, 0, 5, 0), "input_addr", None),
        ((0x0A | 7 << 32, 0, 0, 0), "sid", 7),
        ((0x77 | 7 << 32, 0, 0, 0), "name", "RESERVED_0x77"),
        ((0x77 | 7 << 32, 0, 0, 0), "sid", 7),
        ((0xE3 | 7 << 32, 0, 0, 0), "name", "IMPDEF_0xe3"),
        ((0xE3 | 7 << 32, 0, 0, 0), "sid", None),
    ],
)
def test_fields(words: tuple[int, int, int, int], field: str, value: object) -> None:
    assert EventRecord(words).as_dict()[field] == value


@pytest.mark.parametrize(
    ("words", "defined"),
    [
        pytest.param((0x10 | 5 << 12, 0xABCD, 7, 9), (0x10, 0, 7, 0), id="nothing"),
        pytest.param((0x10 | 1 << 11 | 5 << 12, 0, 7, 0), None, id="ssid"),
        pytest.param((0x08 | 5 << 12, 0, 0, 0), None, id="ssid-without-ssv"),
        pytest.param((0x10, 1 << 31 | 0xABCD, 7, 0), None, id="stag"),
        pytest.param((0x10, 1 << 39, 7, 0x5000), None, id="ipa"),
        pytest.param((0x13, 1 << 48, 7, 0), (0x13, 0, 7, 0), id="implementation-defined"),
        pytest.param((0x0A | 5 << 12, 1, 2, 3), (0x0A, 1, 2, 3), id="no-translation-fault"),
        pytest.param((0xE3 | 5 << 12, 1, 2, 3), None, id="no-stream"),
    ],
)
def test_what_means_nothing_is_left_out(
    words: tuple[int, int, int, int], defined: tuple[int, int, int, int] | None
) -> None:
    """`defined` clears the fields that the specification leaves UNKNOWN in this record."""
    assert EventRecord(words).defined() == EventRecord(defined or words)


@given(RECORDS)
def test_what_is_left_is_defined(record: EventRecord) -> None:
    assert record.defined().defined() == record.defined()
    shown = {**record.as_dict(), "stag": 0, "raw": 0}
    assert {**record.defined().as_dict(), "stag": 0, "raw": 0} == shown


def test_unknown_types_show_their_words() -> None:
    record = EventRecord((0x77, 1, 2, 3))
    assert all(f"{word:#018x}" in str(record) for word in record.words)
    assert type_name(0xEF) == "IMPDEF_0xef"


def test_a_number_that_is_no_word_is_refused() -> None:
    with pytest.raises(ValueError, match="four 64-bit words"):
        EventRecord((1 << 64, 0, 0, 0))


def test_half_a_record_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of 32"):
        list(decode_records(bytes(48)))
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        EventRecord.from_bytes(bytes(31))


def test_records_lie_one_after_the_other() -> None:
    first, second = EventRecord((1, 2, 3, 4)), SEEN
    assert [*decode_records(first.to_bytes() + second.to_bytes())] == [first, second]
    assert [*decode_records(b"")] == []
