"""What a kernel's text does not tell of an event is not made up."""

from __future__ import annotations

import json

import pytest

from harness.smmu.decode.found import SSID_NOT_TOLD, Damaged, Found, Sighting
from harness.smmu.decode.output import damaged_json, damaged_text, event_json, event_text
from harness.smmu.decode.reader import read_text
from harness.smmu.decode.summary import Tally
from harness.smmu.events import EventRecord, EventType
from tests.decode_forms import CLIENT, messages, texts

NAME = "arm-smmu-v3.0.auto"
BAD = EventRecord((0x4200_0000_3008, 0, 0, 0))


def found(*bodies: str) -> list[Found]:
    return list(read_text("".join(f"[    1.500000] {body}\n" for body in bodies)))


@pytest.mark.parametrize(
    "kind",
    [EventType.F_UUT, EventType.F_WALK_EABT, EventType.F_TLB_CONFLICT, 0xE3],
)
def test_a_type_that_the_kernel_does_not_name_is_not_known(kind: int) -> None:
    lines = texts(EventRecord((0x4200_0000_0000 | kind, 0, 0x4000_1000, 0)))
    assert "UNKNOWN" in lines[0]
    (damaged,) = found(lines[0])
    assert isinstance(damaged, Damaged)
    assert (damaged.kind, damaged.sid, damaged.client, damaged.smmu) == (None, 0x4200, CLIENT, NAME)
    assert damaged_text(damaged).startswith("an event  sid 0x4200  damaged: ")
    made = json.loads(damaged_json(damaged))
    assert made["sid"] == 0x4200
    assert "type" not in made


def test_beside_its_words_an_event_needs_no_name() -> None:
    record = EventRecord((0x4200_0000_0001, 0, 0x4000_1000, 0))
    (event,) = found(*messages(record), *texts(record))
    assert event == Sighting(1, record.words, NAME, CLIENT, 1.5)


def test_the_text_of_c_bad_substreamid_has_no_substreamid() -> None:
    (event,) = found(*texts(BAD))
    assert isinstance(event, Sighting)
    assert event.notes == (SSID_NOT_TOLD,)
    assert event_text(event).startswith("C_BAD_SUBSTREAMID  sid 0x4200  bdf 42:00.0  client ")
    assert json.loads(event_json(event))["ssid"] is None
    tally = Tally()
    tally.add(event)
    assert "ssid" not in next(tally.text())


def test_its_words_have_it() -> None:
    (event,) = found(*messages(BAD), *texts(BAD))
    assert isinstance(event, Sighting)
    assert "ssid 0x3" in event_text(event)
    assert json.loads(event_json(event))["ssid"] == 3


def test_of_damaged_words_the_text_has_no_substreamid_either() -> None:
    (damaged,) = found(messages(BAD)[0], *texts(BAD))
    assert isinstance(damaged, Damaged)
    assert damaged_text(damaged).startswith("C_BAD_SUBSTREAMID  sid 0x4200  damaged: ")
