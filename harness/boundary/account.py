"""The account of one queue's records: what a correct reader makes of what passed the boundary, and
what QEMU and the guest made of it. All witnesses that can be counted are compared."""

from __future__ import annotations

from harness.boundary.client import Boundary, Passage, entries
from harness.devices.dma import ACCESS_BYTES, UNMAPPED, Direction, Dma
from harness.devices.testdev import IommuTestdev
from harness.errors import HarnessError
from harness.expectation import expect
from harness.guest.guest import Guest
from harness.smmu import loss, trace
from harness.smmu.events import EventRecord, EventType
from harness.smmu.loss import Report
from harness.smmu.vevents import QueueType
from harness.waiting import wait_for

#: Where the last fault of an account is: beyond all others.
LAST = 0x7FFF_0000


class Account:
    """Of a guest's whole life so far: it must be a clean one, behind a boundary."""

    def __init__(self, guest: Guest, boundary: Boundary, testdev: IommuTestdev) -> None:
        self.guest, self.boundary, self.testdev = guest, boundary, testdev
        self.queue = guest.event_queue()
        self.start, self._trace_start = self.queue.mark(), guest.trace_size()
        self._faulted = 0
        self._log = boundary.log()
        self._reader = loss.Reader(QueueType.ARM_SMMUV3)
        self._events: list[EventRecord] = []
        self._reports: list[Report] = []

    def fault(self, count: int = 1) -> list[EventRecord]:
        """Have the fault source raise that many faults at once, each elsewhere; their records."""
        dma = Dma(UNMAPPED + self._faulted * ACCESS_BYTES, count * ACCESS_BYTES, Direction.WRITE)
        self._faulted += count
        self.testdev.perform(dma)
        return self._records(dma)

    def expected(self) -> tuple[list[EventRecord], list[Report]]:
        """The events and the reports of a correct reader of what was delivered so far."""
        for entry in entries(self._log.lines()):
            for record in entry.sent if isinstance(entry, Passage) else ():
                outcome = self._reader.accept(record)
                if outcome.event is not None:
                    self._events.append(EventRecord.from_bytes(outcome.event))
                if outcome.report is not None:
                    self._reports.append(outcome.report)
        return self._events, self._reports

    def reported(self) -> list[Report]:
        """What QEMU said of its queues."""
        return [message.report for message in loss.messages(self.guest.qemu_messages())]

    def close(self) -> list[EventRecord]:
        """One more fault, after which QEMU has nothing left to say; then compare the guest's queue
        memory and QEMU's trace with what was delivered.

        The events that the guest got, without that last one. Raises ProductError where witnesses
        differ, HarnessError when rules stay unused.
        """
        last = Dma(LAST, ACCESS_BYTES, Direction.WRITE)
        self.testdev.perform(last)

        def through() -> bool:
            state = self.boundary.queue()
            used = not state.left and not state.waiting
            return used and self.expected()[0][-1:] == self._records(last)

        wait_for(
            "the rules to be used up and the last event to be delivered",
            through,
            deadline=30 + self._faulted / 1000,
            error=HarnessError,
            last_seen=lambda: f"{self.boundary.queue()}",
        )
        events, _ = self.expected()
        self.queue.expect(events, self.start)
        forwarded = self.guest.wait_propagated(len(events), self._trace_start)
        named = [trace.PropagatedEvent(event.name, event.sid or 0) for event in events]
        expect("QEMU's trace", forwarded, named)
        return events[:-1]

    def _records(self, dma: Dma) -> list[EventRecord]:
        return dma.expected(EventType.F_TRANSLATION, self.testdev.vsid)
