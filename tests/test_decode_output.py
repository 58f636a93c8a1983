"""What was found is shown as a line of text or of JSON, with whose, when and where it was."""

from __future__ import annotations

import json

import pytest

from harness.smmu.decode.found import Damaged, Explained, Sighting
from harness.smmu.decode.meanings import meaning
from harness.smmu.decode.output import (
    JSON,
    TEXT,
    bdf,
    damaged_json,
    damaged_text,
    event_json,
    event_text,
    explained_json,
    explained_text,
    known_text,
    stamp_text,
    where,
)
from harness.smmu.events import EventRecord

ALL, HIGHEST = (1 << 64) - 1, 1 << 63
WORDS = (0x2108_0000_0010, 2 << 40, 0x1000, 0)
SAID = "F_TRANSLATION  sid 0x2108  bdf 21:01.0  unprivileged data write  iova 0x1000"
WHAT = f"{SAID}  stage 1  class IN"


@pytest.mark.parametrize(
    ("sid", "client", "place"),
    [
        (0x2108, None, "21:01.0"),
        (0xABCD_FFFF, None, "ff:1f.7"),
        (7, "0000:00:00.7", "00:00.7"),
        (8, "00010000:00:01.0", "00:01.0"),
        (7, "platform", None),
        (7, "0000:00:00.8", None),
    ],
)
def test_a_stream_of_pci_has_a_function(sid: int, client: str | None, place: str | None) -> None:
    assert bdf(sid, client) == place


def test_times_are_texts() -> None:
    assert [stamp_text(time) for time in (1.5, "Nov 21", 0.0)] == ["1.500000", "Nov 21", "0.000000"]
    assert where(3, None, None, None) == "  line 3"
    assert where(3, "smmu0", "0000:21:01.0", 0.0, True) == (
        "  client 0000:21:01.0  smmu smmu0  time 0.000000  line 3, from text"
    )
    assert where(3, None, None, "Nov 21") == "  time Nov 21  line 3"


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Sighting(7, WORDS), f"{WHAT}  line 7"),
        (Sighting(7, WORDS, time=0.0), f"{WHAT}  time 0.000000  line 7"),
        (Sighting(7, WORDS, smmu="smmu0"), f"{WHAT}  smmu smmu0  line 7"),
        (Sighting(7, WORDS, from_text=True), f"{WHAT}  line 7, from text"),
        (Sighting(7, WORDS, notes=("one", "two")), f"{WHAT}  line 7  (one)  (two)"),
        (
            Sighting(7, WORDS, client="0000:21:01.0"),
            f"{WHAT}  client 0000:21:01.0  line 7",
        ),
        (
            Sighting(7, (0x0A | 7 << 32, 0, 6, 1), client="platform"),
            "C_BAD_CD  sid 0x7  reserved w2 0x6  reserved w3 0x1  client platform  line 7",
        ),
        (
            Sighting(7, (0x13, 1 << 39 | 2 << 40, 0x1000, 0x2FFF)),
            "F_PERMISSION  sid 0x0  bdf 00:00.0  unprivileged data write  iova 0x1000  ipa 0x2000  "
            "stage 2  class IN  reserved w3 0xfff  line 7",
        ),
        (
            Sighting(7, (0x0B, 2, 0x1000, 0x2008)),
            "F_WALK_EABT  sid 0x0  bdf 00:00.0  unprivileged data write  iova 0x1000  "
            "fetch 0x2008  stage 1  class CD  reason 0x2  line 7",
        ),
        (
            Sighting(7, (0x03, 0, 0, 8)),
            "F_STE_FETCH  sid 0x0  bdf 00:00.0  fetch 0x8  line 7",
        ),
        (
            Sighting(7, (0xE3, 1, 3, 3)),
            f"{EventRecord((0xE3, 1, 3, 3))}  line 7",
        ),
        (
            Sighting(7, (0x10, 2 << 40, HIGHEST | 1, HIGHEST | 1)),
            "F_TRANSLATION  sid 0x0  bdf 00:00.0  unprivileged data write  iova 0x8000000000000001"
            "  stage 1  class IN  line 7",
        ),
        (
            Sighting(7, (0x03, 0, 8, 0)),
            "F_STE_FETCH  sid 0x0  bdf 00:00.0  fetch 0x0  reserved w2 0x8  line 7",
        ),
        (
            Sighting(7, (0x0A, 0, HIGHEST, HIGHEST)),
            "C_BAD_CD  sid 0x0  bdf 00:00.0  reserved w2 0x8000000000000000"
            "  reserved w3 0x8000000000000000  line 7",
        ),
    ],
)
def test_an_event_is_a_line_of_text(event: Sighting, said: str) -> None:
    assert event_text(event) == said


@pytest.mark.parametrize(
    "words",
    [
        WORDS,
        *((kind, ALL, ALL, ALL) for kind in (0x03, 0x05, 0x0A, 0x0B, 0x10, 0x13, 0x20, 0x24, 0x77)),
        *((kind, 0, 0x1FFF, 0x2FFF) for kind in (0x03, 0x05, 0x0A, 0x0B, 0x10, 0x13, 0x20, 0xE3)),
        *((kind, 1 << 39, 0, 0) for kind in (0x0B, 0x10, 0x20, 0x24)),
        *((0x0A, 0, w2, w3) for w2, w3 in ((0, 0), (0, 1), (1, 0), (0, HIGHEST), (HIGHEST, 0))),
        (0x03, 0, 8, 0),
        (0x10, 0, HIGHEST | 1, HIGHEST | 1),
    ],
)
def test_an_event_in_json_is_the_records_dictionary(words: tuple[int, int, int, int]) -> None:
    record = EventRecord(words)
    shown = json.loads(event_json(Sighting(7, words)))
    expected = record.as_dict()
    assert {name: shown[name] for name in expected} == expected
    assert shown["meaning"] == meaning(record.type, stage2=bool(record.s2))


def test_an_event_in_json_has_each_key_once() -> None:
    keys = [key for key, _ in json.loads(event_json(Sighting(7, WORDS)), object_pairs_hook=list)]
    assert len(keys) == len(set(keys))


def test_an_event_in_json_says_whose_when_and_where() -> None:
    plain = json.loads(event_json(Sighting(7, WORDS)))
    assert (plain["kind"], plain["source"], plain["line"]) == ("event", "words", 7)
    assert [plain[name] for name in ("client", "smmu", "time", "notes")] == [None, None, None, []]
    assert (plain["bdf"], plain["raw"]) == ("21:01.0", list(WORDS))
    event = Sighting(8, WORDS, "smmu0", "platform", 1.25, True, ("one",))
    full = json.loads(event_json(event))
    assert (full["raw"], full["source"], full["line"]) == (None, "text", 8)
    whose = [full[name] for name in ("client", "smmu", "time", "notes", "bdf")]
    assert whose == ["platform", "smmu0", 1.25, ["one"], None]
    assert json.loads(event_json(event._replace(time="Nov 21")))["time"] == "Nov 21"
    assert json.loads(event_json(Sighting(7, (0xE3, 1, 2, 3))))["bdf"] is None


def test_a_message_is_a_line() -> None:
    found = Explained(5, "GERROR", "it failed", "smmu0", 1.5)
    assert explained_text(found) == "GERROR: it failed  smmu smmu0  time 1.500000  line 5"
    assert json.loads(explained_json(found)) == {
        "kind": "message",
        "name": "GERROR",
        "text": "it failed",
        "smmu": "smmu0",
        "time": 1.5,
        "line": 5,
    }


def test_a_damaged_event_is_a_line() -> None:
    words = (0x21_0000_3813, 1 << 39, 0x1000, 0x2000)
    found = Damaged(3, 5, "event", "cut off", None, words, "smmu0", "platform", 1.5)
    known = "F_PERMISSION  sid 0x21  ssid 0x3  write  iova 0x1000  ipa 0x2000"
    assert known_text(found) == known
    end = "client platform  smmu smmu0  time 1.500000  line 3"
    assert damaged_text(found) == f"{known}  damaged: cut off, lines 3 to 5  {end}"
    one_line = damaged_text(Damaged(3, 3, "event", "cut off"))
    assert one_line == "  damaged: cut off  line 3"
    fetch = Damaged(3, 3, "event", "cut off", None, (0x09, 0, None, 8))
    assert known_text(fetch) == "F_CD_FETCH  sid 0x0  fetch 0x8"
    shown = json.loads(damaged_json(found))
    assert (shown["kind"], shown["damage"], shown["sid"]) == ("damaged", "cut off", 0x21)
    whose = [shown[name] for name in ("smmu", "client", "time", "line", "last_line")]
    assert whose == ["smmu0", "platform", 1.5, 3, 5]


def test_each_form_has_a_writer_of_each_sort() -> None:
    assert (event_text, explained_text, damaged_text) == TEXT
    assert (event_json, explained_json, damaged_json) == JSON
