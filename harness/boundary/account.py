"""Compare all records of a clean guest's event queue with those that the boundary delivered.

A correct reader of the delivered records says what QEMU and the guest must show. The guest's queue
memory and QEMU's trace are compared with that; `reported` gives what QEMU said of losses.
"""

from __future__ import annotations

from harness.boundary.client import Boundary, Passage, entries
from harness.devices.dma import UNMAPPED, Dma
from harness.devices.source import FaultSource
from harness.errors import HarnessError, ProductError
from harness.expectation import expect
from harness.guest.guest import Guest
from harness.smmu import loss, trace
from harness.smmu.events import EventRecord
from harness.smmu.loss import Report
from harness.smmu.vevents import QueueType
from harness.waiting import wait_for

#: The IOVA of an account's last fault, which is above those of all others.
LAST = 0x7FFF_0000


class Account:
    """The account of one guest's records, from its boot on: the guest must be clean, and have a
    boundary. Each access of the source raises exactly one record. Raises HarnessError for a source
    whose accesses may be cut."""

    def __init__(self, guest: Guest, boundary: Boundary, source: FaultSource) -> None:
        if source.cut:
            raise HarnessError(
                f"{source} raises more or fewer records than it makes accesses by its {source.way}",
                fix="use a source that floods",
            )
        self.guest, self.boundary, self.source = guest, boundary, source
        self.queue = guest.event_queue()
        self.start, self._trace_start = self.queue.mark(), guest.trace_size()
        self._faulted = 0
        self._log = boundary.log()
        self._reader = loss.Reader(QueueType.ARM_SMMUV3)
        self._events: list[EventRecord] = []
        self._reports: list[Report] = []

    def fault(self, count: int = 1) -> list[EventRecord]:
        """Make the fault source raise `count` faults at once, each at another IOVA; return their
        records."""
        dma = self.source.burst(count, UNMAPPED + self._faulted * self.source.grain)
        self._faulted += count
        self.source.perform(dma)
        return self._records(dma)

    def expected(self) -> tuple[list[EventRecord], list[Report]]:
        """Return the events and the reports of a correct reader of all records delivered so far."""
        for entry in entries(self._log.lines()):
            for record in entry.sent if isinstance(entry, Passage) else ():
                outcome = self._reader.accept(record)
                if outcome.event is not None:
                    self._events.append(EventRecord.from_bytes(outcome.event))
                if outcome.report is not None:
                    self._reports.append(outcome.report)
        return self._events, self._reports

    def reported(self) -> list[Report]:
        """Return QEMU's reports about its queues."""
        return [message.report for message in loss.messages(self.guest.qemu_messages())]

    def close(self) -> list[EventRecord]:
        """Raise one more fault, so that QEMU has reported all that was before it; then compare the
        guest's queue memory and QEMU's trace with what was delivered.

        Return the events that the guest got, without that last one. Raises ProductError if
        witnesses differ or records are missing, HarnessError if all came and rules are left
        unused.
        """
        last = self.source.burst(1, LAST)
        self.source.perform(last)

        def through() -> bool:
            state = self.boundary.queue()
            used = not state.left and not state.waiting
            return used and self._defined(self.expected()[0][-1:]) == self._records(last)

        try:
            wait_for(
                "the rules to be used up and the last event to be delivered",
                through,
                deadline=30 + self._faulted / 1000,
                error=ProductError,
                last_seen=lambda: f"{self.boundary.queue()}",
            )
        except ProductError as expired:
            # Rules that all records have not used up are the test's mistake.
            state = self.boundary.queue()
            if state.left and state.received > self._faulted:
                raise HarnessError(expired.message) from None
            raise
        events, _ = self.expected()
        self.queue.expect(events, self.start, exact=True)
        forwarded = self.guest.wait_propagated(len(events), self._trace_start)
        named = [trace.PropagatedEvent(event.name, event.sid or 0) for event in events]
        expect("QEMU's trace", forwarded, named)
        return self._defined(events[:-1])

    def _defined(self, events: list[EventRecord]) -> list[EventRecord]:
        """Return the events as far as the host's SMMU defines them."""
        return events if self.queue.exact else [event.defined() for event in events]

    def _records(self, dma: Dma) -> list[EventRecord]:
        return [access.record for access in self.source.expected(dma)]
