"""QEMU makes up no event and loses none when records are cut short or late, or a read fails."""

from __future__ import annotations

import errno

import pytest

from harness.boundary.account import Account
from harness.boundary.client import Boundary, behind_boundary
from harness.boundary.on_host.rules import Delay, Hold, InterruptRead, LostHeader, Pass, Short
from harness.errors import ProductError
from harness.fixtures.guests import BEHIND_BOUNDARY, FLOODED
from harness.smmu.loss import Lost, Overflowed, ShortRead
from harness.smmu.vevents import QueueType
from harness.waiting import wait_for

WHOLE = QueueType.ARM_SMMUV3.record_bytes

pytestmark = pytest.mark.guest(BEHIND_BOUNDARY)


@pytest.mark.covers("LOSS-06")
@pytest.mark.parametrize("size", [4, 8, 20, WHOLE - 1])
def test_a_short_record_is_reported_and_no_event_made_of_it(
    account: Account, boundary: Boundary, size: int
) -> None:
    boundary.apply(Pass(), Short(size))

    events = account.fault(3)

    assert account.close() == [events[0], events[2]]
    # QEMU discards the short record and its sequence number, so the next one shows a gap of 1.
    assert account.reported() == [ShortRead(size, WHOLE), Lost(1)]


@pytest.mark.known_defect(
    "LOSS-07", symptom=r"At index 1 diff: Lost\(count=1\) != ShortRead\(got=20, whole=40\)"
)
@pytest.mark.covers("LOSS-07")
def test_a_short_record_is_reported_after_an_overflow_was(
    account: Account, boundary: Boundary
) -> None:
    boundary.apply(Pass(), LostHeader(), Pass(), Short(20))

    events = account.fault(4)

    assert account.close() == [events[0], events[1], events[3]]
    assert account.reported() == [Overflowed(), ShortRead(20, WHOLE), Lost(1)]


@pytest.mark.covers("LOSS-08")
@pytest.mark.guest(behind_boundary(FLOODED, reads=True))
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR], ids=errno.errorcode.get)
def test_an_interrupted_read_makes_up_nothing_and_loses_nothing(
    account: Account, boundary: Boundary, error: int
) -> None:
    boundary.apply(InterruptRead(error, count=5))

    events = account.fault(16)

    assert account.close() == events
    assert account.reported() == []
    interrupted = [one.answer for one in boundary.answered() if one.call == "read"]
    assert interrupted == [errno.errorcode[error]] * 5


@pytest.mark.covers("LOSS-12")
@pytest.mark.parametrize("seconds", [0.1, 1.0, 10.0])
def test_delayed_records_arrive_in_order(
    account: Account, boundary: Boundary, seconds: float
) -> None:
    boundary.apply(Pass(), Delay(seconds, count=2))

    events = account.fault(4)
    boundary.wait_received(4, 0, deadline=seconds + 20)

    assert account.close() == events
    assert account.reported() == []
    late = [one for one in boundary.passages() if one.did == Delay.name]
    assert len(late) == 2
    assert all(one.time - one.arrived >= seconds for one in late)


@pytest.mark.covers("LOSS-12")
def test_held_records_arrive_once_they_are_released(account: Account, boundary: Boundary) -> None:
    boundary.apply(Pass(2), Hold())

    events = account.fault(100)
    # The boundary reads the records in several batches.
    wait_for(
        "98 records to be held",
        lambda: boundary.queue().waiting == 98,
        deadline=20,
        error=ProductError,
        last_seen=boundary.queue,
    )
    assert len(account.queue.since(account.start)) == 2
    boundary.release()

    assert account.close() == events
    assert account.reported() == []
