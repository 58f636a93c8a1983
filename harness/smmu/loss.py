"""Loss accounting: what a correct reader of a vEVENTQ must report, and what QEMU did report.

The kernel numbers all events, those that it had to drop included, and tells of a drop in one of two
ways (drivers/iommu/iommufd/driver.c, iommufd_viommu_report_event, and iommufd_private.h,
iommufd_vevent_handler): a LOST_EVENTS header at the queue's tail, which carries the number of the
last one dropped; or, when another event was queued before anybody read that header, only a gap.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.smmu.vevents import QueueType, VEvent, distance


@dataclass(frozen=True)
class Lost:
    """A gap in the numbers: that many events are missing before the one that came."""

    count: int

    def __str__(self) -> str:
        return f"lost {self.count} event(s)"


@dataclass(frozen=True)
class Overflowed:
    """A LOST_EVENTS header: some are missing, and the numbers start anew."""

    def __str__(self) -> str:
        return "overflowed"


@dataclass(frozen=True)
class ShortRead:
    """A record cut off: bytes that came, and those of a whole one."""

    got: int
    whole: int

    def __str__(self) -> str:
        return f"short read({self.got}/{self.whole} bytes)"


@dataclass(frozen=True)
class ReadFailed:
    """read(2) failed; the error as strerror(3) says it."""

    reason: str

    def __str__(self) -> str:
        return f"read failed ({self.reason})"


Report = Lost | Overflowed | ShortRead | ReadFailed


@dataclass(frozen=True)
class Outcome:
    """What a reader makes of one read: an event to pass on or none, a report or none."""

    event: bytes | None = None
    report: Report | None = None


class Reader:
    """A correct reader of one queue: feed it what each read returned."""

    def __init__(self, kind: QueueType) -> None:
        self.kind = kind
        self._last: int | None = None

    def accept(self, record: bytes) -> Outcome:
        """One record, or the LOST_EVENTS header, or whatever else a read returned; nothing is what
        an empty queue gives."""
        if not record:
            return Outcome()
        if len(record) < self.kind.record_bytes:
            if len(record) >= 8 and VEvent.decode(record).is_lost_events:
                self._last = None
                return Outcome(report=Overflowed())
            return Outcome(report=ShortRead(len(record), self.kind.record_bytes))
        event = VEvent.decode(record)
        # 0 for the number after the last, wrap included; a repeated one is a whole turn away.
        missing = distance(self._last, event.sequence - 1) if self._last is not None else 0
        self._last = event.sequence
        return Outcome(event.data, Lost(missing) if missing else None)


def reports(kind: QueueType, records: Iterable[bytes]) -> list[Report]:
    """All that a correct reader says of a stream of records."""
    reader = Reader(kind)
    said = (reader.accept(record).report for record in records)
    return [report for report in said if report is not None]


def count_lost(events: Iterable[VEvent], after: int | None = None) -> int:
    """Events that the kernel numbered but did not deliver, as these numbers tell: those of
    LOST_EVENTS headers included. `after` is the last number before; without it counting starts at
    the first of these."""
    lost = 0
    for event in events:
        if after is not None:
            # A header's number is that of a lost event, an event's is its own.
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
    """A warning of QEMU's about one queue; `id` is the kernel's number of it."""

    type: int
    id: int
    report: Report


def messages(text: str) -> Iterator[QueueWarning]:
    """QEMU's warnings about queues in what it printed, in order (hw/arm/smmuv3-accel.c).

    Raises ValueError for one that says something new.
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
    raise ValueError(f"QEMU says something new of a vEVENTQ: {said!r}")
