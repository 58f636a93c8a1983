"""What is known of a damaged event, and what each type of event means."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from harness.smmu.decode.found import Damaged, Explained, Sighting, known_fields
from harness.smmu.decode.meanings import meaning
from harness.smmu.events import EventRecord, EventType

#: An F_PERMISSION of stage 2 that has all its fields; an F_WALK_EABT; an E_PAGE_REQUEST.
PERMISSION = (
    0x21_0000_3813,
    1 << 31 | 1 << 34 | 3 << 38 | 1 << 40 | 1 << 44 | 5,
    0x1000,
    0x2000,
)
HEAD = {"type": 0x13, "name": "F_PERMISSION", "sid": 0x21, "ssid": 3}
ACCESS = {
    "rnw": "write",
    "ind": True,
    "pnu": False,
    "s2": True,
    "stall": True,
    "stag": 5,
    "class": "TTD",
    "ttrnw": "read",
    "nsipa": True,
}


def damaged(words: Sequence[int | None], kind: int | None = None) -> Damaged:
    return Damaged(1, 2, "what", "reason", kind, words)


@pytest.mark.parametrize(
    ("known", "fields"),
    [
        ("0123", {**HEAD, **ACCESS, "input_addr": 0x1000, "ipa": 0x2000}),
        ("012", {**HEAD, **ACCESS, "input_addr": 0x1000}),
        ("01", {**HEAD, **ACCESS}),
        ("013", {**HEAD, **ACCESS, "ipa": 0x2000}),
        ("02", {**HEAD, "input_addr": 0x1000}),
        # Without the second word nobody knows whether the fourth one is an IPA.
        ("03", HEAD),
        ("0", HEAD),
        ("", {}),
        ("123", {}),
    ],
)
def test_what_is_left_of_an_event_is_known(known: str, fields: dict[str, object]) -> None:
    words = [word if str(at) in known else None for at, word in enumerate(PERMISSION)]
    assert known_fields(damaged(words)) == fields


def test_a_head_alone_says_what_the_words_are() -> None:
    found = known_fields(damaged([None, PERMISSION[1], 0x1000, 0x2000], 0x13))
    assert found == {
        "type": 0x13,
        "name": "F_PERMISSION",
        **ACCESS,
        "input_addr": 0x1000,
        "ipa": 0x2000,
    }
    assert known_fields(damaged([None] * 4, 0xE3)) == {"type": 0xE3, "name": "IMPDEF_0xe3"}


def test_a_word_counts_for_more_than_the_head() -> None:
    assert known_fields(damaged([0x7_0000_000A, None, None, None], 0x13)) == {
        "type": 0x0A,
        "name": "C_BAD_CD",
        "sid": 7,
    }


def test_addresses_of_fetches_and_requests_are_fields_too() -> None:
    assert known_fields(damaged([0x09, 1 << 16 | 7, None, 0x5008])) == {
        "type": 9,
        "name": "F_CD_FETCH",
        "sid": 0,
        "reason": 7,
        "gpcf": True,
        "fetch_addr": 0x5008,
    }
    # It is a fetch's whatever the second word is.
    assert known_fields(damaged([0x09, None, None, 0x5008])) == {
        "type": 9,
        "name": "F_CD_FETCH",
        "sid": 0,
        "fetch_addr": 0x5008,
    }
    assert known_fields(damaged([0x24, 1 << 38 | 2 << 44, 0x5000, None])) == {
        "type": 0x24,
        "name": "E_PAGE_REQUEST",
        "sid": 0,
        "requested": ["pW"],
        "span": 2,
        "input_addr": 0x5000,
    }


def test_what_is_found_has_no_more_than_it_is_given() -> None:
    seen = Sighting(3, PERMISSION)
    assert seen.record == EventRecord(PERMISSION)
    assert (seen.smmu, seen.client, seen.time, seen.from_text, seen.notes) == (
        *(None, None, None),
        *(False, ()),
    )
    assert Explained(1, "name", "said") == (1, "name", "said", None, None)
    assert Damaged(1, 2, "what", "reason").words == (None, None, None, None)


def test_every_type_has_a_meaning_of_its_own() -> None:
    said = {meaning(kind) for kind in EventType}
    assert len(said) == len(EventType)
    assert all(one.endswith((".", "?")) for one in said)


def test_a_fault_of_stage_2_is_the_hypervisors() -> None:
    plain, stage2 = (meaning(EventType.F_ACCESS, stage2=one) for one in (False, True))
    assert meaning(EventType.F_ACCESS) == plain
    assert stage2.startswith(f"{plain} It is a fault of stage 2")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        *((kind, "The specification reserves this number") for kind in (0x00, 0xDF, 0xF0, 0xFF)),
        *((kind, "Implementation defined") for kind in (0xE0, 0xE7, 0xEF)),
    ],
)
def test_numbers_without_a_name_have_a_meaning_too(kind: int, said: str) -> None:
    assert meaning(kind, stage2=True).startswith(said)
