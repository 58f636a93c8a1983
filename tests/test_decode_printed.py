"""Records are read as tools, drivers and consoles print them, and other numbers are not."""

from __future__ import annotations

import random

import pytest

from harness.smmu.decode.found import Damaged, Explained, Found, Sighting
from harness.smmu.decode.reader import read_text
from harness.smmu.events import EventRecord

A = EventRecord((0x4200_0000_0010, 0x200_0000_0000, 0x4000_1000, 0))
B = EventRecord((0x4300_0000_0011, 0x280_0000_0000, 0x1_4000_2000, 0x5000))
CD = EventRecord((0x4200_0000_000A, 0, 0, 0))
DATA = b"".join(record.to_bytes() for record in (A, B, CD))


def found(*lines: str) -> list[Found]:
    return list(read_text("".join(f"{line}\n" for line in lines)))


def events(*lines: str) -> list[EventRecord]:
    return [one.record for one in found(*lines) if isinstance(one, Sighting)]


def array(data: bytes, count: int) -> list[str]:
    """Return the lines of an array of bytes in C."""
    return [
        "  " + " ".join(f"0x{byte:02x}," for byte in data[at : at + count])
        for at in range(0, len(data), count)
    ]


def hexdump(data: bytes) -> list[str]:
    return [
        f"{0x48000000 + at:08x}: {data[at : at + 16].hex(' ')}  ................"
        for at in range(0, len(data), 16)
    ]


@pytest.mark.parametrize("count", [4, 8, 12, 16, 24, 32])
def test_an_array_of_bytes(count: int) -> None:
    for data, records in ((A.to_bytes(), [A]), (DATA, [A, B, CD])):
        made = found("unsigned char queue[] = {", *array(data, count), "};", "unsigned int n = 32;")
        assert [one.record for one in made if isinstance(one, Sighting)] == records
        assert len(made) == len(records)


@pytest.mark.parametrize("count", [8, 12])
def test_an_array_of_other_bytes_is_no_event(count: int) -> None:
    data = random.Random(1).randbytes(96 * 40)
    assert events(*array(data, count)) == []


@pytest.mark.parametrize("size", [30, 32])
def test_bytes_without_spaces(size: int) -> None:
    for data, records in ((A.to_bytes(), [A]), (DATA, [A, B, CD])):
        lines = [data[at : at + size].hex() for at in range(0, len(data), size)]
        assert events(*lines) == records
        assert events(*(line.upper() for line in lines)) == records


def test_checksums_are_no_events() -> None:
    sums = [random.Random(at).randbytes(32).hex() for at in range(400)]
    assert events(*sums) == []
    assert events("d41d8cd98f00b204e9800998ecf8427e", "10") == []


def test_the_shell_of_uefi() -> None:
    lines = [
        f"  {0x48000000 + at:08X}: {DATA[at : at + 8].hex(' ').upper()}-"
        f"{DATA[at + 8 : at + 16].hex(' ').upper()}  *.....B..........*"
        for at in range(0, len(DATA), 16)
    ]
    assert events(*lines) == [A, B, CD]


@pytest.mark.parametrize("iova", [0x4000_1000, 0x1_4000_1000, 0x1000, 0, 0xFFFF_F000])
@pytest.mark.parametrize("name", ["{1:#x}", "w{0}: {1:#x}", "evt[{0}] = {1:#x}", "{1:#018x}"])
def test_a_word_a_line_has_any_length(iova: int, name: str) -> None:
    record = EventRecord((*A.words[:2], iova, 0))
    lines = [name.format(at, word) for at, word in enumerate(record.words)]
    assert found(*lines, *lines) == [Sighting(1, record.words), Sighting(5, record.words)]


@pytest.mark.parametrize("iova", [0x4000_1000, 0x1_4000_1000, 0x1000])
@pytest.mark.parametrize("last", [0, 0x4000_1000])
def test_two_words_a_line_have_any_length(iova: int, last: int) -> None:
    words = (*A.words[:2], iova, last)
    lines = [
        f"0x48000000: {words[0]:#x} {words[1]:#x}",
        f"0x48000010: {words[2]:#x} {words[3]:#x}",
    ]
    assert found(*lines) == [Sighting(1, words)]


WORDS = " ".join(f"{word:#018x}" for word in A.words)


@pytest.mark.parametrize(
    "line",
    [
        "irq-123 [001] d..1. 100.0: hil_evt: (handle+0x0/0x2c0) evt0=0x4200000010 "
        "evt1=0x20000000000 evt2=0x40001000 evt3=0x0",
        "p: arg1=0x4200000010 arg2=0x20000000000 arg3=0x40001000 arg4=0x0",
        "p: evt[0]=0x4200000010, evt[1]=0x20000000000, evt[2]=0x40001000, evt[3]=0x0",
    ],
)
def test_words_with_names_in_a_trace(line: str) -> None:
    assert events(line) == [EventRecord((0x42_0000_0010, *A.words[1:]))]


def test_registers_are_no_events() -> None:
    dice = random.Random(2)
    for at in range(300):
        values = [dice.getrandbits(64) for _ in range(4)]
        lines = [
            " ".join(f"x{n}=0x{value:x}" for n, value in enumerate(values)),
            f"[  100.{at:06}] regs: " + " ".join(f"{value:#018x}" for value in values),
        ]
        assert events(*lines) == []


STAMPS = [
    "2026-11-25T01:02:03.1234567Z ",
    "[2026-11-25 01:02:03] ",
    "[  100.000000] ",
    "[  100.000000] evtq: ",
    "2026-11-25T01:02:03+01:00 ",
    "Nov 25 01:02:03 host kernel: evtq: ",
    "[12:03:04] ",
]


@pytest.mark.parametrize("stamp", STAMPS)
def test_numbers_behind_a_time(stamp: str) -> None:
    assert events(stamp + WORDS) == [A]


@pytest.mark.parametrize("stamp", STAMPS[:-1])
def test_dumps_behind_a_time(stamp: str) -> None:
    assert events(*(stamp + line for line in hexdump(DATA))) == [A, B, CD]
    words = [WORDS[:37], WORDS[38:]]
    lines = [f"{stamp}{0x48000000 + 16 * at:016x}: {two}" for at, two in enumerate(words)]
    assert events(*lines) == [A]
    # Other lines of the log may come between.
    lines.insert(1, "[  100.000001] pci 0000:00:01.0: BAR 0 assigned")
    assert events(*lines) == [A]


@pytest.mark.parametrize("stamp", STAMPS[:-1])
def test_other_dumps_behind_a_time_are_no_events(stamp: str) -> None:
    data = random.Random(3).randbytes(32 * 200)
    made = found(*(stamp + line for line in hexdump(data)))
    assert not any(isinstance(one, Sighting | Damaged | Explained) for one in made)


def test_records_of_types_without_a_name() -> None:
    for number in (0x77, 0xE3):
        record = EventRecord((0x4200_0000_0000 | number, 1, 2, 3))
        (made,) = found(f"{record}  client 0000:42:00.0  smmu s0")
        assert isinstance(made, Sighting)
        assert (made.record, made.client, made.smmu) == (record, "0000:42:00.0", "s0")
    other = str(EventRecord((0x4200_0000_0077, 1, 2, 3))).replace("RESERVED_0x77", "RESERVED_0x76")
    assert events(other) == events(other[:-20]) == []
