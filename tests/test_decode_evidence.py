"""What this project prints of events, in its logs and reports, is read again."""

from __future__ import annotations

import base64
import json

import pytest

from harness.smmu.decode.evidence import entries, passages, printed
from harness.smmu.decode.found import Explained, Found, Sighting
from harness.smmu.events import EventRecord, EventType
from harness.smmu.vevents import VEvent, lost_events

W = (0x2200_0000_0010, 0x200_0000_0000, 0x1000_0000, 0)
DATA = EventRecord(W).to_bytes()
HEX = DATA.hex()
QUEUE = "ARM_SMMUV3 0"


def event(*notes: str, queue: str = QUEUE, time: float = 1.5) -> Sighting:
    return Sighting(3, W, queue, None, time, notes=notes)


def told(name: str, said: str, queue: str = QUEUE, time: float = 1.5) -> Explained:
    return Explained(3, name, said, queue, time)


# -- the boundary file of a report ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{QUEUE} id 5: pass: #7 {HEX}", [event("#7")]),
        (f" {QUEUE} id 5: pass: #7 {HEX} #8 {HEX}\n", [event("#7"), event("#8")]),
        (f"smmu0 id 5: pass: #7 {HEX}", [event("#7", queue="smmu0")]),
        (
            f"{QUEUE} id 5: drop: #7 {HEX} -> nothing",
            [event("#7", "boundary: drop, sent as nothing")],
        ),
        (
            f"{QUEUE} id 5: reorder: #7 {HEX} #8 LOST_EVENTS -> #8 LOST_EVENTS #7 {HEX}",
            [
                event("#7", f"boundary: reorder, sent as #8, #7 {HEX}"),
                told(
                    "LOST_EVENTS",
                    "#8: the kernel dropped events up to this one; boundary: reorder, sent as "
                    f"#8, #7 {HEX}",
                ),
            ],
        ),
        (f"{QUEUE} id 5: pass: #7 {HEX} -> #7 {HEX}", [event("#7")]),
        (
            f"{QUEUE} id 5: inject: nothing -> #9 {HEX}",
            [event("#9", "boundary: inject: made up, it never came")],
        ),
        (f"{QUEUE} id 5: pass: nothing", []),
        (
            f"{QUEUE} id 5: pass: #8 LOST_EVENTS",
            [told("LOST_EVENTS", "#8: the kernel dropped events up to this one")],
        ),
        (
            f"{QUEUE} id 5: short: #7 {HEX} -> #7 1000",
            [event("#7", "boundary: short, sent as #7 1000")],
        ),
        (
            f"{QUEUE} id 5: short: #7 {HEX} -> [4 bytes]",
            [event("#7", "boundary: short, sent as [4 bytes]")],
        ),
        (
            f"{QUEUE} id 5: pass: #7 100000",
            [told("boundary: damaged record", "#7: 3 bytes, which is no record")],
        ),
        (
            f"{QUEUE} id 5: pass: #7 10000",
            [told("boundary: damaged record", "#7: 0 bytes, which is no record")],
        ),
        (f"{QUEUE} id 5: pass: [3 bytes]", []),
        (
            f"cmdqv1 id 6: pass: #2 {'05' + 30 * '0'}",
            [told("CMDQV error", "#2: LVCMDQ 0, 2", "cmdqv1")],
        ),
        (
            f"TEGRA241_CMDQV 1 id 6: drop: #2 {'0001' + 28 * '0'} -> nothing",
            [
                told(
                    "CMDQV error",
                    "#2: LVCMDQ 8; boundary: drop, sent as nothing",
                    "TEGRA241_CMDQV 1",
                )
            ],
        ),
        (f"cmdqv1 id 6: pass: #2 {32 * '0'}", [told("CMDQV error", "#2: LVCMDQ none", "cmdqv1")]),
        (
            f"{QUEUE} id 5: alloc: fail: ENOMEM",
            [told("boundary: call", "id 5  alloc: rule fail: ENOMEM")],
        ),
        (
            "smmu1 id None: invalidate: refuse: EIO, 1 of 2 entries",
            [
                told(
                    "boundary: call",
                    "id None  invalidate: rule refuse: EIO, 1 of 2 entries",
                    "smmu1",
                )
            ],
        ),
        ("something else", []),
        (f"{QUEUE} id 5: pass: what", []),
    ],
)
def test_lines_of_a_report(text: str, found: list[Found]) -> None:
    assert passages(3, 1.5, text) == found


# -- the boundary's own log ----------------------------------------------------------------------


def packed(*records: bytes) -> list[object]:
    return [base64.b64encode(record).decode() for record in records]


def entry(**changed: object) -> str:
    fields = {"time": 1.5, "queue": [1, 0], "id": 5, "did": "pass", "got": packed(FIRST)}
    return json.dumps({**fields, **changed})


FIRST, SECOND = (VEvent(number, DATA).encode() for number in (7, 8))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (entry(), [event("#7")]),
        (entry(got=packed(FIRST, SECOND)), [event("#7"), event("#8")]),
        (
            entry(got=[2, base64.b64encode(FIRST + SECOND).decode()]),
            [event("#7"), event("#8")],
        ),
        (entry(did="drop", sent=[]), [event("#7", "boundary: drop, sent as nothing")]),
        (
            entry(did="inject", got=[], sent=packed(SECOND)),
            [event("#8", "boundary: inject: made up, it never came")],
        ),
        (
            entry(got=packed(lost_events(9).encode())),
            [told("LOST_EVENTS", "#9: the kernel dropped events up to this one")],
        ),
        (
            entry(queue=[2, 1], got=packed(VEvent(2, bytes([5]) + bytes(15)).encode())),
            [told("CMDQV error", "#2: LVCMDQ 0, 2", "TEGRA241_CMDQV 1")],
        ),
        (
            entry(got=packed(b"1234567")),
            [told("boundary: damaged record", "#0: 7 bytes, which is no record")],
        ),
        (
            entry(got=packed(bytes(8))),
            [told("boundary: damaged record", "#0: 0 bytes, which is no record")],
        ),
        (
            entry(call="VEVENTQ_ALLOC", answer="ENOMEM", did="fail"),
            [told("boundary: call", "id 5  VEVENTQ_ALLOC: rule fail: ENOMEM")],
        ),
        (
            entry(call="HWPT_INVALIDATE", answer="EIO", did="refuse", entries=2, processed=1),
            [told("boundary: call", "id 5  HWPT_INVALIDATE: rule refuse: EIO, 1 of 2 entries")],
        ),
        *(
            (line, [])
            for line in (
                *("{}", '"queue" "time"', '["queue", "time"]', "[" * 100_000 + '"queue" "time"'),
                *(entry(queue=[9, 0]), entry(queue=[1]), entry(queue=1), entry(time="never")),
                *(entry(got=["a"]), entry(got=1), entry(got=[0, "aaaa"]), entry(sent=None)),
                *(entry(time=None), entry(got=[2])),
            )
        ),
    ],
)
def test_lines_of_the_boundarys_log(line: str, found: list[Found]) -> None:
    assert entries(3, line) == found


def test_a_line_without_a_queue_or_a_time_is_another_programs() -> None:
    for name in ("queue", "time"):
        assert entries(3, entry().replace(f'"{name}"', '"other"')) == []


# -- records in words ----------------------------------------------------------------------------

ALL = (1 << 64) - 1
RECORDS = [
    *((kind, 0, 0, 0) for kind in EventType),
    *((kind, ALL, ALL, ALL) for kind in EventType),
    *((kind, ALL ^ 1 << 39, ALL, ALL) for kind in (0x10, 0x13, 0x0B)),
    *((0x13, 1 << 39 | number << 40, 0, 0x5000) for number in range(4)),
    *((0x13, 1 << 40 | number << 44, 0, 0) for number in range(2)),
    *((0x10, 1 << bit, 0x1001, 0) for bit in (31, 33, 34, 35, 38, 39, 40, 41)),
    *((0x10, 1 << 31 | stag, 0, 0) for stag in (0, 1, 0xABCD)),
    *((0x0B, bits, 0x1001, 0x88) for bits in (0x1F, 1 << 16, 1 << 33, 1 << 34, 1 << 35)),
    *((0x05, bits, 0x1000, 0) for bits in (3, *(1 << bit for bit in range(28, 32)))),
    *((0x24, bits, 0x1000, 0) for bits in (5 << 44, *(1 << bit for bit in range(33, 40)))),
]


@pytest.mark.parametrize("first", [0, 0x2200 << 32, 0x21 << 32 | 0x1B800, ALL << 32 & ALL])
def test_a_record_in_words_is_read_as_it_was(first: int) -> None:
    for kind, *rest in RECORDS:
        record = EventRecord((first | kind, rest[0], rest[1], rest[2]))
        found = printed(3, f"  before it  {record}")
        assert found is not None
        assert (found.line, found.from_text, found.smmu, found.time) == (3, True, None, None)
        unknown = {"raw": None, "reserved": None}
        if not record.stall:
            unknown["stag"] = None
        assert {**found.record.as_dict(), **unknown} == {**record.as_dict(), **unknown}
        # A bit that nothing shows is not set.
        assert str(found.record) == str(record).partition("  reserved")[0]


SAID = "F_TRANSLATION  sid 0x2200  unprivileged data write  iova 0x10000000  stage 1  class IN"


@pytest.mark.parametrize(
    ("more", "whose"),
    [
        ("", (None, None, None)),
        ("  smmu smmu0", ("smmu0", None, None)),
        ("  client 0000:01:00.0  smmu smmu0", ("smmu0", "0000:01:00.0", None)),
        ("  time 1.500000  line 7", (None, None, 1.5)),
        ("  time Nov 21 07:00:00", (None, None, "Nov 21 07:00:00")),
        ("  time 15", (None, None, "15")),
        ("  time x1.5", (None, None, "x1.5")),
        ("  who knows what", (None, None, None)),
    ],
)
def test_what_hil_decode_prints_is_read_again(more: str, whose: tuple[object, ...]) -> None:
    found = printed(3, f"{SAID}{more} \n")
    assert found is not None
    assert found.words == W
    assert (found.smmu, found.client, found.time) == whose


@pytest.mark.parametrize(
    "text",
    [
        "F_TRANSLATION",
        "F_TRANSLATION sid 0x2200",
        "F_UNHEARD_OF  sid 0x2200",
        "xF_TRANSLATION  sid 0x2200",
        "-F_TRANSLATION  sid 0x2200",
        "F_TRANSLATION  sid 0x2200 and more",
        "F_TRANSLATION  sid 0x2200  iova what",
        "F_TRANSLATION  sid 0x2200  class WHAT",
        "F_TRANSLATION  sid 0x100000000",
        "F_TRANSLATION  sid 0x2200  iova 0x10000000000000000",
        "F_TRANSLATION  sid 0x2200  ipa 0x10000000000000000",
        "F_WALK_EABT  sid 0x2200  reason 0x10000000000000000",
    ],
)
def test_other_words_are_no_record(text: str) -> None:
    assert printed(3, text) is None


def test_the_largest_numbers_are_read() -> None:
    most = f"{ALL:#x}"
    found = printed(3, f"F_WALK_EABT  sid 0xffffffff  iova {most}  fetch {most}  reason {most}")
    assert found is not None
    assert found.words == (0xFFFF_FFFF_0000_000B, ALL, ALL, ALL)
