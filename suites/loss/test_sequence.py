"""QEMU reports each gap in the sequence numbers with its size, and reports nothing else."""

from __future__ import annotations

import pytest

from harness.boundary.account import Account
from harness.boundary.client import Boundary
from harness.boundary.on_host.rules import Drop, Duplicate, LostHeader, Pass, Renumber, Reorder
from harness.fixtures.guests import BEHIND_BOUNDARY
from harness.smmu.loss import Lost, Overflowed, Report
from harness.smmu.vevents import INT_MAX

pytestmark = pytest.mark.guest(BEHIND_BOUNDARY)


@pytest.mark.covers("LOSS-01")
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_a_gap_is_reported_with_its_size(account: Account, boundary: Boundary, count: int) -> None:
    boundary.apply(Pass(), Drop(count))

    events = account.fault(count + 2)

    assert account.close() == [events[0], events[-1]]
    assert account.reported() == [Lost(count)]


@pytest.mark.covers("LOSS-01")
def test_every_gap_is_reported(account: Account, boundary: Boundary) -> None:
    boundary.apply(Pass(), Drop(1), Pass(2), Drop(3), Pass(), Drop(2))

    events = account.fault(11)

    assert account.close() == [events[index] for index in (0, 2, 3, 7, 10)]
    assert account.reported() == [Lost(1), Lost(3), Lost(2)]


@pytest.mark.covers("LOSS-02")
def test_consecutive_numbers_are_no_loss(account: Account) -> None:
    events = account.fault(64)

    assert account.close() == events
    assert account.reported() == []


@pytest.mark.covers("LOSS-02")
def test_the_first_record_may_have_any_number(account: Account, boundary: Boundary) -> None:
    boundary.apply(Drop(500))

    events = account.fault(502)

    assert account.close() == events[500:]
    assert account.reported() == []


@pytest.mark.covers("LOSS-03")
def test_an_overflow_is_reported_and_tracking_restarts(
    account: Account, boundary: Boundary
) -> None:
    # The first gap follows the LOST_EVENTS header, which has already reported that loss. The second
    # gap is a loss that must be reported.
    boundary.apply(Pass(2), LostHeader(), Drop(5), Pass(), Drop(3), Pass())

    events = account.fault(12)

    assert account.close() == [events[index] for index in (0, 1, 7, 11)]
    assert account.reported() == [Overflowed(), Lost(3)]


@pytest.mark.known_defect("LOSS-05", symptom=r"assert \[Lost\(count=21474836(48|51)\)\] == ")
@pytest.mark.covers("LOSS-05")
@pytest.mark.parametrize(
    ("lost", "expected"), [(0, []), (3, [Lost(3)])], ids=["no-gap", "gap-across"]
)
def test_the_wrap_of_the_numbers_is_no_loss(
    account: Account, boundary: Boundary, lost: int, expected: list[Report]
) -> None:
    """The sequence number after INT_MAX is 0, or `lost` if that many events are lost there."""
    drops = [Drop(lost)] if lost else []
    boundary.apply(Renumber(to=INT_MAX), *drops, Renumber(to=lost, count=10))

    events = account.fault(1 + lost + 9)

    assert account.close() == [events[0], *events[1 + lost :]]
    assert account.reported() == expected


@pytest.mark.covers("LOSS-18")
@pytest.mark.parametrize(
    "first",
    [(1 << 15) - 5, (1 << 16) - 5, (1 << 24) - 5, (1 << 30) - 5, INT_MAX - 20],
    ids=["2^15", "2^16", "2^24", "2^30", "2^31"],
)
def test_a_counter_that_has_run_for_long_is_followed(
    account: Account, boundary: Boundary, first: int
) -> None:
    """The numbers are as after so many events: no report is made before a gap nor after it, and the
    gap has its size, also where a bit of the counter is used for the first time."""
    boundary.apply(Renumber(to=first, count=6), Drop(7), Renumber(to=first + 13, count=6))

    events = account.fault(6 + 7 + 5)

    assert account.close() == [*events[:6], *events[13:]]
    assert account.reported() == [Lost(7)]


@pytest.mark.known_defect(
    "LOSS-05", symptom=r"At index 0 diff: Lost\(count=2147483648\) != Lost\(count=2\)"
)
@pytest.mark.covers("LOSS-18", "LOSS-05")
def test_gaps_are_counted_beyond_the_wrap(account: Account, boundary: Boundary) -> None:
    """As after 2^31 events, of which the counter says nothing: the next numbers are 0, 1, 2, and
    two are missing after that."""
    boundary.apply(Renumber(to=INT_MAX - 1, count=5), Drop(2), Renumber(to=5, count=4))

    events = account.fault(5 + 2 + 3)

    assert account.close() == [*events[:5], *events[7:]]
    assert account.reported() == [Lost(2)]


@pytest.mark.covers("LOSS-09")
@pytest.mark.parametrize(
    ("rule", "order"),
    [
        (Duplicate(2), (0, 1, 1, 1, 2, 3, 4)),
        (Reorder((1, 0)), (0, 2, 1, 3, 4)),
        (Reorder((2, 0, 1)), (0, 3, 1, 2, 4)),
    ],
    ids=str,
)
def test_what_is_reported_is_what_the_numbers_say(
    account: Account, boundary: Boundary, rule: Duplicate | Reorder, order: tuple[int, ...]
) -> None:
    boundary.apply(Pass(), rule)

    events = account.fault(5)

    assert account.close() == [events[index] for index in order]
    # QEMU takes a step back for a gap of nearly the whole range of numbers. The kernel never steps
    # back, so the test accepts a count that is correct modulo 2^31.
    reported = [
        Lost(one.count & INT_MAX) if isinstance(one, Lost) else one for one in account.reported()
    ]
    assert reported == account.expected()[1]
