"""The error and the page for a wrong sequence show the first difference, and align the rest."""

from __future__ import annotations

import re
import time

import pytest

from harness.expectation import DiffersError, expect, only
from harness.report.table import html
from harness.smmu.events import EventRecord, EventType


def fault(number: int, *, sid: int = 0x21) -> EventRecord:
    return EventRecord.stage1_fault(
        EventType.F_TRANSLATION, sid=sid, input_addr=0x1000 + 4 * number, rnw=False
    )


def rows(page: str, kind: str) -> list[str]:
    return re.findall(rf'<tr class="{kind}">.*?</tr>', page)


def test_only_one_is_taken() -> None:
    assert only("queues", iter([7])) == 7
    with pytest.raises(DiffersError, match=r"^queues: 0 found, 1 expected: \(\)$"):
        only("queues", [])
    with pytest.raises(DiffersError, match=r"^queues: 2 found, 1 expected: \(1, 2\)$"):
        only("queues", [1, 2])


def test_equal_sequences_are_as_expected() -> None:
    expect("the queue", [fault(1), fault(2)], (fault(1), fault(2)))


def test_the_error_has_both_and_names_the_first_difference() -> None:
    with pytest.raises(
        DiffersError, match=r"the queue: 1 entries, 2 expected; 1 missing"
    ) as differs:
        expect("the queue", [fault(1)], [fault(1), fault(2)])
    assert differs.value.actual == (fault(1),)
    assert differs.value.expected == (fault(1), fault(2))


def test_the_error_can_say_how_they_differ() -> None:
    differs = DiffersError("the queue", [fault(1)], [fault(2)], "0 records of an access")
    assert differs.message == "the queue: 0 records of an access"
    assert (differs.actual, differs.expected) == ((fault(1),), (fault(2),))


def test_as_many_are_not_enough() -> None:
    with pytest.raises(DiffersError, match="entry 1 of 2"):
        expect("the queue", [fault(1), fault(3)], [fault(1), fault(2)])


def test_what_repeats_is_aligned_too() -> None:
    expected = [fault(1), fault(2)] * 300
    got = expected[:100] + expected[101:500] + expected[501:]
    page = html("the queue", got, expected)
    assert len(rows(page, "missing")) == 2
    assert not rows(page, "other")


def test_one_missing_event_is_one_row() -> None:
    expected = [fault(number) for number in range(100)]
    page = html("the queue", expected[:40] + expected[41:], expected)
    (row,) = rows(page, "missing")
    assert "missing</td><td>40</td>" in row
    assert f"{0x1000 + 4 * 40:#x}" in row
    assert not rows(page, "extra") + rows(page, "other")
    assert "99 actual" in page
    assert "100 expected" in page
    assert page.count("equal …") == 2
    # The page also shows an equal row on either side.
    assert len(re.findall(r"<tr><td>\d+</td>", page)) == 2


def test_an_event_too_many_is_one_row() -> None:
    expected = [fault(number) for number in range(10)]
    page = html("the queue", [*expected[:5], fault(77), *expected[5:]], expected)
    assert len(rows(page, "extra")) == 1
    assert not rows(page, "missing") + rows(page, "other")


def test_what_differs_in_an_entry_is_marked() -> None:
    page = html("the queue", [fault(1, sid=0x900)], [fault(1)])
    (row,) = rows(page, "other")
    assert re.findall("<mark>(.*?)</mark>", row) == ["sid 0x900", "sid 0x21"]


def test_nothing_came() -> None:
    page = html("the queue", [], [fault(1), fault(2)])
    assert len(rows(page, "missing")) == 2


def test_entries_are_text() -> None:
    page = html("<q>", ["<script>"], ["a & b"])
    assert "<script>" not in page
    assert {"&lt;script&gt;", "&lt;q&gt;"} <= set(re.findall("&lt;.*?&gt;", page))


@pytest.mark.parametrize("repeats", [1, 1000])
def test_a_hundred_thousand_take_a_moment(repeats: int) -> None:
    """A hundred thousand entries are compared within seconds. They are aligned if all are distinct,
    and not if they repeat a thousand times."""
    expected = [fault(number) for number in range(100_000 // repeats)] * repeats
    got = expected[1:50_000] + expected[50_001:]
    started = time.process_time()
    page = html("the queue", got, expected)
    assert time.process_time() - started < 5
    assert len(page) < 200_000
    assert len(rows(page, "missing")) == (2 if repeats == 1 else 0)
