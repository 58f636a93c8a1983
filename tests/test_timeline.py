"""The timeline of a test shows what its reader must see, such as a lost or late event."""

from __future__ import annotations

import time
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from harness.boundary.client import SMMUV3, Passage
from harness.guest.journal import Growth, Journal
from harness.report.timeline import Lane, Look, Mark, draw
from harness.report.witnesses import Offset, grown, log_clock, log_marks, passage_look
from harness.smmu.events import RECORD_BYTES
from harness.smmu.ring import Ring
from harness.smmu.vevents import LOST_EVENTS, QueueType, VEvent

SVG = "{http://www.w3.org/2000/svg}"


def circles(svg: str, look: Look) -> list[ElementTree.Element]:
    return [
        one
        for one in ElementTree.fromstring(svg).iter(f"{SVG}circle")
        if one.get("fill") == look.value
    ]


def texts(svg: str) -> list[str]:
    return [one.text or "" for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_nothing_but_context_is_no_picture() -> None:
    assert draw([]) == ""
    assert draw([Lane("host's log", [Mark(1.0, "a line", Look.CONTEXT)])]) == ""


def test_a_lost_event_is_seen_beside_others_at_the_same_time() -> None:
    marks = [Mark(5.0, "#1"), Mark(5.0, "#2 dropped", Look.LOST), Mark(5.0, "#3")]
    svg = draw([Lane("boundary", marks, "3, 2 given on")])
    assert len(circles(svg, Look.LOST)) == 1
    assert len(circles(svg, Look.EVENT)) == 1
    assert "2" in texts(svg), "two events at one place are counted"
    assert "3, 2 given on" in texts(svg)


def test_a_late_event_is_drawn_as_long_as_it_took() -> None:
    lanes = [
        Lane("boundary", [Mark(0.0, "delayed", Look.CHANGED, end=9.0)]),
        Lane("queue memory", [Mark(9.0, "came")]),
    ]
    (bar,) = [
        one
        for one in ElementTree.fromstring(draw(lanes)).iter(f"{SVG}rect")
        if one.get("fill") == Look.CHANGED.value
    ]
    (came,) = circles(draw(lanes), Look.EVENT)
    end = float(bar.get("x", "")) + float(bar.get("width", ""))
    assert end == pytest.approx(float(came.get("cx", "")), abs=0.2)
    assert float(bar.get("width", "")) > 500


def test_what_came_between_two_looks_is_drawn_from_the_first_to_the_second() -> None:
    lanes = [
        Lane("queue memory", [Mark(8.0, "2 more", begin=2.0)]),
        Lane("fault source", [Mark(0.0, "go")]),
    ]
    svg = draw(lanes)
    go, seen = sorted(float(one.get("cx", "")) for one in circles(svg, Look.EVENT))
    (bar,) = [one for one in ElementTree.fromstring(svg).iter(f"{SVG}rect") if one.get("opacity")]
    start, width = float(bar.get("x", "")), float(bar.get("width", ""))
    assert start + width == pytest.approx(seen, abs=0.2)
    assert (start - go) / (seen - go) == pytest.approx(2 / 8, abs=0.01)


def test_context_counts_only_where_events_are() -> None:
    context = [Mark(when, f"line {when}", Look.CONTEXT) for when in (-100.0, 0.5, 100.0)]
    svg = draw([Lane("QEMU's trace", [Mark(0.0, "a"), Mark(1.0, "b"), *context])])
    assert len(circles(svg, Look.CONTEXT)) == 1


def test_numbers_do_not_cover_each_other() -> None:
    marks = [Mark(place + step / 1e4, "x") for place in range(200) for step in range(1000)]
    numbers = [
        float(one.get("x", ""))
        for one in ElementTree.fromstring(draw([Lane("QEMU's trace", marks)])).iter(f"{SVG}text")
        if (one.text or "").isdigit()
    ]
    assert len(numbers) > 10
    assert all(after - before >= 4 * 7 for before, after in pairwise(numbers))


def test_what_witnesses_say_is_text_and_no_markup() -> None:
    svg = draw([Lane("a <b>", [Mark(0.0, 'x < y & "z"')], "<i>")], ["</svg>"])
    (title,) = ElementTree.fromstring(svg).iter(f"{SVG}title")
    assert title.text == 'x < y & "z"'
    assert {"a <b>", "<i>", "</svg>"} <= set(texts(svg))


def test_notes_have_room_below() -> None:
    lanes = [Lane("fault source", [Mark(0.0, "x")])]
    root = ElementTree.fromstring(draw(lanes, ["one", "two", "three"]))
    height = float(root.get("viewBox", "").split()[3])
    assert max(float(one.get("y", "")) for one in root.iter(f"{SVG}text")) < height


LOG = """\
[   10.000000] arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:
[   10.000100] arm-smmu-v3 arm-smmu-v3.0.auto: \t0x0000210000000010
[   11.000000] Kernel panic - not syncing: sysrq triggered crash
[   12.500000] hil: clock
"""


def test_a_kernels_stamps_become_the_hosts_time() -> None:
    clock = log_clock(LOG, now=1000.0, error=0.1)
    marks = log_marks(LOG, clock)
    assert [(mark.time, mark.look) for mark in marks] == [
        (997.5, Look.EVENT),
        (pytest.approx(997.5001), Look.CONTEXT),
        (998.5, Look.LOST),
    ]
    assert clock.error == 0.1


def test_the_latest_word_of_ours_is_the_clock() -> None:
    again = LOG + "[   20.000000] hil: clock\n"
    assert log_clock(again, now=1000.0, error=0.0) == Offset(980.0, 0.0)


def test_a_log_without_our_word_has_no_clock() -> None:
    with pytest.raises(ValueError, match="/dev/kmsg"):
        log_clock("[    1.000000] hello\n", now=1000.0, error=0.0)


def record(sequence: int) -> bytes:
    return VEvent(sequence, b"x" * (QueueType.ARM_SMMUV3.record_bytes - 8)).encode()


HEADER = VEvent(5, flags=LOST_EVENTS).encode()


@pytest.mark.parametrize(
    ("did", "got", "sent", "look"),
    [
        ("pass", (record(1),), (record(1),), Look.EVENT),
        ("drop", (record(1),), (), Look.LOST),
        ("undelivered", (record(1),), (), Look.LOST),
        ("delay", (record(1),), (record(1),), Look.CHANGED),
        ("short", (record(1),), (record(1)[:20],), Look.CHANGED),
        ("inject", (), (record(1),), Look.CHANGED),
        # A LOST_EVENTS header shows as a loss, whether the kernel or a rule made it.
        ("pass", (HEADER,), (HEADER,), Look.LOST),
        ("lost_header", (record(1),), (HEADER,), Look.LOST),
        # An event that the guest got once already is not lost.
        ("merge", (record(1),), (), Look.CHANGED),
    ],
)
def test_what_became_of_a_record_shows(
    did: str, got: tuple[bytes, ...], sent: tuple[bytes, ...], look: Look
) -> None:
    assert passage_look(Passage(1.0, 1.0, SMMUV3, 1, did, got, sent)) is look


def test_a_queue_grew_between_two_readings() -> None:
    journal = Journal()
    for prod in (5, 5, 7, 7, 8):
        journal.read(0, prod)
        time.sleep(0.002)
    journal.read(1, 3)
    assert [(one.smmu, one.old, one.new) for one in journal.growths] == [(0, 5, 7), (0, 7, 8)]
    first, second = journal.growths
    assert first.before < first.seen <= second.before < second.seen
    assert journal.smmus == [0]


@pytest.mark.parametrize(
    ("old", "new", "count"),
    [
        (0x10, 0x14, 4),
        (0x1FE, 0x202, 4),  # with 512 entries this is a step over the wrap bit
        (0x3FE, 0x002, 4),
        (0x150, 0x020, 0x20),  # the guest's driver set its queue up again
    ],
)
def test_how_many_records_came(old: int, new: int, count: int) -> None:
    assert grown(Ring(0x4000_0000, 9, RECORD_BYTES), Growth(0, 1.0, 2.0, old, new)) == count


def test_a_command_that_fails_is_in_the_journal() -> None:
    journal = Journal()
    with pytest.raises(ValueError, match="no"), journal.running("false", "try it"):
        raise ValueError("no")
    (command,) = journal.commands
    assert (command.command, command.what) == ("false", "try it")
    assert command.start <= command.end
