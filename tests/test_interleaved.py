"""Records of several StreamIDs are compared each with its own, whatever order they came in."""

from __future__ import annotations

import pytest

from harness.expectation import DiffersError
from harness.guest.event_queue import EventQueue, QueueMark
from harness.smmu.events import RECORD_BYTES, EventRecord, EventType
from harness.smmu.ring import Ring


class HeldQueue(EventQueue):
    """An event queue that holds these records."""

    def __init__(self, *records: EventRecord) -> None:
        self.smmu, self.exact = 0, True
        self.records = records

    def geometry(self) -> Ring:
        return Ring(0, 4, RECORD_BYTES)

    @property
    def prod(self) -> int:
        return len(self.records)

    def since(self, mark: QueueMark) -> list[EventRecord]:
        return list(self.records[mark.prod :])


def fault(sid: int, address: int) -> EventRecord:
    return EventRecord.stage1_fault(EventType.F_TRANSLATION, sid=sid, input_addr=address, rnw=False)


ONE, TWO, OTHER = fault(0x2100, 0x1000), fault(0x2100, 0x2000), fault(0x2200, 0x1000)


def test_what_came_is_returned_in_its_order() -> None:
    queue = HeldQueue(ONE, OTHER, TWO)
    assert queue.expect([OTHER, ONE, TWO], QueueMark(0), interleaved=True) == [ONE, OTHER, TWO]


@pytest.mark.parametrize(
    ("came", "first_difference"),
    [
        ([TWO, OTHER, ONE], "entry 0 of 3"),  # one StreamID's records are out of order
        ([ONE, OTHER, TWO, OTHER], "4 entries, 3 expected; 1 too many"),
        ([ONE, OTHER, OTHER], "entry 1 of 3"),
    ],
)
def test_order_and_number_count_for_each_streamid(
    came: list[EventRecord], first_difference: str
) -> None:
    with pytest.raises(DiffersError, match=first_difference):
        HeldQueue(*came).expect([OTHER, ONE, TWO], QueueMark(0), interleaved=True)


def test_order_counts_among_all_unless_they_interleave() -> None:
    with pytest.raises(DiffersError, match="entry 0 of 3"):
        HeldQueue(ONE, OTHER, TWO).expect([OTHER, ONE, TWO], QueueMark(0))
