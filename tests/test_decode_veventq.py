"""What reads of a vEVENTQ returned is told from the memory of an event queue."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from harness.smmu.decode import veventq
from harness.smmu.decode.forms import Form
from harness.smmu.decode.found import Damaged, Explained, Found, Sighting
from harness.smmu.decode.reader import read
from harness.smmu.events import EventRecord
from harness.smmu.vevents import INT_MAX, VEvent, lost_events
from tests.decode_forms import DUMPS

FAULT = EventRecord((0x2200_0000_0010, 0x200_0000_0000, 0x1000_0000, 0))
CD = EventRecord((0x2200_0000_000A, 0, 0, 0))
UUT = EventRecord((0x2200_0000_0001, 0xE_0000_0000, 0x1000_0010, 0))
LOST = lost_events(6)


def vevent(sequence: int, record: EventRecord = FAULT) -> VEvent:
    return VEvent(sequence, record.to_bytes())


def returned(*records: VEvent) -> bytes:
    return b"".join(one.encode() for one in records)


def hexdump(data: bytes, start: int = 0) -> list[str]:
    """Return what `hexdump -C` prints."""
    lines = [
        f"{start + at:08x}  {data[at : at + 8].hex(' ')}  {data[at + 8 : at + 16].hex(' ')}  |.|"
        for at in range(0, len(data), 16)
    ]
    return [*lines, f"{start + len(data):08x}"]


def debugger(data: bytes, start: int = 0x4800_0000) -> list[str]:
    """Return what GDB's `x/gx` prints."""
    return [
        f"{start + at:#x}:"
        + "".join(f"\t{word:#018x}" for (word,) in struct.iter_unpack("<Q", two))
        for at in range(0, len(data), 16)
        if (two := data[at : at + 16])
    ]


def plain(data: bytes) -> list[str]:
    """Return the words without addresses."""
    words = [f"{word:#018x}" for (word,) in struct.iter_unpack("<Q", data)]
    return [" ".join(words[at : at + 4]) for at in range(0, len(words) // 4 * 4, 4)] + words[
        len(words) // 4 * 4 :
    ]


def found(data: bytes | list[str], form: Form = Form.AUTO, size: int = 1 << 16) -> list[Found]:
    if isinstance(data, list):
        data = "".join(f"{line}\n" for line in data).encode()
    return list(read([data[at : at + size] for at in range(0, len(data), size)], form))


Print = Callable[..., list[str]]


def told(found: list[Found]) -> list[object]:
    """Return events as their words and number, and messages and damage as their kind."""
    return [
        (one.words, *one.notes)
        if isinstance(one, Sighting)
        else one.said.split(":")[0]
        if isinstance(one, Explained)
        else type(one)
        for one in found
    ]


READS = pytest.mark.parametrize(
    ("records", "said"),
    [
        ([vevent(7)], [(FAULT.words, "#7")]),
        ([LOST, vevent(7)], ["#6", (FAULT.words, "#7")]),
        ([LOST, vevent(9)], ["#6", (FAULT.words, "#9")]),
        ([lost_events(1), vevent(2, CD)], ["#1", (CD.words, "#2")]),
        (
            [vevent(INT_MAX), vevent(0, CD), vevent(1, UUT)],
            [(FAULT.words, f"#{INT_MAX}"), (CD.words, "#0"), (UUT.words, "#1")],
        ),
        ([vevent(3), LOST, vevent(8, CD)], [(FAULT.words, "#3"), "#6", (CD.words, "#8")]),
        ([vevent(3), vevent(4), LOST], [(FAULT.words, "#3"), (FAULT.words, "#4"), "#6"]),
        ([vevent(at) for at in range(8)], [(FAULT.words, f"#{at}") for at in range(8)]),
    ],
)


@READS
@pytest.mark.parametrize("print_", [hexdump, debugger, plain])
def test_a_dump_of_what_reads_returned(
    records: list[VEvent], said: list[object], print_: Print
) -> None:
    assert told(found(print_(returned(*records)))) == said


@READS
@pytest.mark.parametrize("size", [1 << 16, 50, 7])
def test_what_reads_returned_as_it_is(records: list[VEvent], said: list[object], size: int) -> None:
    data = returned(*records)
    assert told(found(data, Form.RAW, size)) == said
    assert told(found(data)) == said


def test_a_header_alone_is_lost_events() -> None:
    assert told(found(LOST.encode(), Form.RAW)) == ["#6"]


def test_the_rest_of_a_record_that_is_cut_off_is_damage() -> None:
    data = returned(vevent(7), vevent(8))
    assert told(found(data[:-9], Form.RAW)) == [(FAULT.words, "#7"), Damaged]
    *_, damage = found(hexdump(data[:-16]))
    assert isinstance(damage, Damaged)
    assert damage.words[:2] == [*FAULT.words[:2]]
    assert told(found(data + b"\x77" * 40, Form.RAW)) == [
        *((FAULT.words, number) for number in ("#7", "#8")),
        Damaged,
    ]


@pytest.mark.parametrize("lost", range(2, 10))
def test_after_a_line_that_is_missing_the_next_records_are_found(lost: int) -> None:
    lines = hexdump(returned(*(vevent(at, (CD, FAULT)[at % 2]) for at in range(7, 11))))
    del lines[lost]
    made = told(found(lines))
    whole = [(FAULT.words, "#7"), (CD.words, "#8"), (FAULT.words, "#9"), (CD.words, "#10")]
    kept = [one for one in made if one is not Damaged]
    assert kept == [one for one in whole if one in kept]
    assert len(kept) >= 2


@pytest.mark.parametrize(
    "records",
    [
        (UUT, FAULT, CD),
        (EventRecord((0x0100_0000_0001, 0, 0x1000_1010, 0)), FAULT),
        (EventRecord((0, 0, 0, 0)), FAULT, CD, FAULT),
    ],
)
@pytest.mark.parametrize("name", DUMPS)
def test_an_event_queue_stays_one(records: tuple[EventRecord, ...], name: str) -> None:
    data = b"".join(record.to_bytes() for record in records)
    used = [(record.words,) for record in records if any(record.words)]
    assert told(found(data, Form.RAW)) == used
    assert told(list(read([DUMPS[name](data)]))) == used


@pytest.mark.parametrize(
    "words",
    [
        (0, 0x10, 0x20, 0x30, 0x40),
        (7 << 32, 0x10, 0x20, 0x30, 0x40),
        (7 << 32, 0x77, 0x200_0000_0000, 0x1000_0000, 0),
        (7 << 32 | 2, *FAULT.words),
        (0x8000_0007 << 32, *FAULT.words),
        (7 << 32, 0x2200_0000_0110, 0, 0, 0),
        (7 << 32, 0x2200_0000_0010, 1 << 46, 0, 0),
    ],
)
def test_other_bytes_are_none_of_a_veventq(words: tuple[int, ...]) -> None:
    assert veventq.number_before(struct.pack("<5Q", *words)) is None
    assert not any(
        isinstance(one, Sighting) and one.notes
        for one in found(hexdump(struct.pack("<5Q", *words)))
    )


# -- records of which a part is missing --------------------------------------------------------


THREE = [FAULT, EventRecord((0x4300_0000_0012, 0x200_0000_0000, 0x4000_1010, 0)), CD]
START = 0x4800_0000


@pytest.mark.parametrize("print_", [hexdump, debugger])
@pytest.mark.parametrize("lost", range(6))
def test_a_missing_line_of_a_dump_costs_one_record(lost: int, print_: Print) -> None:
    lines = print_(b"".join(record.to_bytes() for record in THREE), START)
    del lines[lost]
    made = told(found(lines))
    whole = [(record.words,) for record in THREE]
    del whole[lost // 2]
    assert [one for one in made if one is not Damaged] == whole
    # The end of a record without an address is zeros.
    assert (Damaged in made) or lost == 4


@pytest.mark.parametrize("start", [START + 0x10, START + 0x18, START + 8, START + 5])
def test_a_copy_of_a_record_has_any_address(start: int) -> None:
    data = FAULT.to_bytes() + THREE[1].to_bytes()
    assert told(found(hexdump(data, start))) == [(FAULT.words,), (THREE[1].words,)]
    lines = hexdump(bytes(32) + data + data, start)
    assert told(found(lines)) == 2 * [(FAULT.words,), (THREE[1].words,)]
    del lines[4]
    kept = [one for one in told(found(lines)) if one is not Damaged]
    assert kept == [(FAULT.words,), (FAULT.words,), (THREE[1].words,)]
