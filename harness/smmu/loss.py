"""Account for lost events: what a correct reader of a vEVENTQ must report, and what QEMU reported.

The kernel numbers all events, including those that it drops. It reports a drop in one of two ways
(drivers/iommu/iommufd/driver.c, iommufd_viommu_report_event, and iommufd_private.h,
iommufd_vevent_handler): with a LOST_EVENTS header at the queue's tail, which has the number of the
last event dropped; or, if another event was queued before the header was read, only with a gap in
the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.smmu.vevents import QueueType, VEvent, distance


@dataclass(frozen=True)
class Lost:
    """A report of a gap in the numbers: `count` events are missing before the one that came."""

    count: int

    def __str__(self) -> str:
        return f"lost {self.count} event(s)"


@dataclass(frozen=True)
class Overflowed:
    """A report of a LOST_EVENTS header: events are missing, and the reader counts anew."""

    def __str__(self) -> str:
        return "overflowed"


@dataclass(frozen=True)
class ShortRead:
    """A report of a record that was cut off: `got` bytes came, a whole one has `whole`."""

    got: int
    whole: int

    def __str__(self) -> str:
        return f"short read({self.got}/{self.whole} bytes)"


@dataclass(frozen=True)
class ReadFailed:
    """A report of a read(2) that failed, with the error's text of strerror(3)."""

    reason: str

    def __str__(self) -> str:
        return f"read failed ({self.reason})"


Report = Lost | Overflowed | ShortRead | ReadFailed


@dataclass(frozen=True)
class Outcome:
    """What a reader does after one read: it passes an event on or none, and reports or not."""

    event: bytes | None = None
    report: Report | None = None


class Reader:
    """A correct reader of one queue, which is given what each read returned."""

    def __init__(self, kind: QueueType) -> None:
        self.kind = kind
        self._last: int | None = None

    def accept(self, record: bytes) -> Outcome:
        """Take what one read returned, and return the outcome. A read returns a record, a
        LOST_EVENTS header or part of a record; from an empty queue it returns no bytes."""
        if not record:
            return Outcome()
        if len(record) < self.kind.record_bytes:
            if len(record) >= 8 and VEvent.decode(record).is_lost_events:
                self._last = None
                return Outcome(report=Overflowed())
            return Outcome(report=ShortRead(len(record), self.kind.record_bytes))
        event = VEvent.decode(record)
        # Nothing is missing if this number follows the last one, wrap included. A repeated number
        # counts as a whole turn of missing events.
        missing = distance(self._last, event.sequence - 1) if self._last is not None else 0
        self._last = event.sequence
        return Outcome(event.data, Lost(missing) if missing else None)


def reports(kind: QueueType, records: Iterable[bytes]) -> list[Report]:
    """Return all reports of a correct reader of a stream of records."""
    reader = Reader(kind)
    said = (reader.accept(record).report for record in records)
    return [report for report in said if report is not None]


def count_lost(events: Iterable[VEvent], after: int | None = None) -> int:
    """Return how many events the kernel numbered but did not deliver, as the numbers of `events`
    show, LOST_EVENTS headers included.

    `after` is the number of the event before these; without it counting starts at the first one.
    """
    lost = 0
    for event in events:
        if after is not None:
            # A header has the number of a lost event, an event its own.
            lost += distance(after, event.sequence if event.is_lost_events else event.sequence - 1)
        after = event.sequence
    return lost


# -- QEMU ------------------------------------------------------------------------------------

_MESSAGE = re.compile(r"vEVENTQ\(type (?P<type>\d+) id (?P<id>\d+)\): (?P<said>.*)$", re.MULTILINE)
_LOST = re.compile(r"lost (\d+) event\(s\)")
_SHORT = re.compile(r"short read\((-?\d+)/(\d+) bytes\)")
_FAILED = re.compile(r"read failed \((.*)\)")


@dataclass(frozen=True)
class QueueWarning:
    """A warning of QEMU's about one queue. `type` is the queue's, as QueueType; `id` is the
    kernel's."""

    type: int
    id: int
    report: Report


def messages(text: str) -> Iterator[QueueWarning]:
    """Yield QEMU's warnings about queues in what it printed, in order (hw/arm/smmuv3-accel.c).

    Raises ValueError for a warning with an unknown text.
    """
    for found in _MESSAGE.finditer(text):
        yield QueueWarning(int(found["type"]), int(found["id"]), _report(found["said"].strip()))


def _report(said: str) -> Report:
    if said == "overflowed":
        return Overflowed()
    if match := _LOST.fullmatch(said):
        return Lost(int(match[1]))
    if match := _SHORT.fullmatch(said):
        return ShortRead(int(match[1]), int(match[2]))
    if match := _FAILED.fullmatch(said):
        return ReadFailed(match[1])
    raise ValueError(f"unknown warning of QEMU's about a vEVENTQ: {said!r}")
