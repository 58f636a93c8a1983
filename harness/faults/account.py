"""The account of one queue's records: what a correct reader makes of what passed the boundary, and
what QEMU and the guest made of it. All witnesses that can be counted are compared."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import HarnessError, ProductError
from harness.faults.boundary import Boundary
from harness.faults.gadgets import ACCESS_BYTES, Direction, Dma, IommuTestdev
from harness.guest.guest import Guest
from harness.smmu import loss, trace
from harness.smmu.compare import difference
from harness.smmu.events import EventRecord, EventType
from harness.smmu.loss import Report
from harness.smmu.vevents import QueueType
from harness.waiting import wait_for

#: Nothing is mapped there: the DMA domain of a device without a driver is empty.
UNMAPPED = 0x4000_0000
LAST = 0x7FFF_0000


class Account:
    """Of a guest's whole life so far: it must be a clean one, behind a boundary."""

    def __init__(self, guest: Guest, boundary: Boundary, testdev: IommuTestdev) -> None:
        self.guest, self.boundary, self.testdev = guest, boundary, testdev
        self.queue = guest.event_queue()
        self.start, self._trace_start = self.queue.mark(), guest.trace_size()
        self._faulted = 0

    def fault(self, count: int = 1) -> list[EventRecord]:
        """Have the gadget make that many faults at once, each elsewhere; their records."""
        dma = Dma(UNMAPPED + self._faulted * ACCESS_BYTES, count * ACCESS_BYTES, Direction.WRITE)
        self._faulted += count
        self.testdev.perform(dma)
        return self._records(dma)

    def expected(self) -> tuple[list[EventRecord], list[Report]]:
        """The events and the reports of a correct reader of what was delivered so far."""
        reader = loss.Reader(QueueType.ARM_SMMUV3)
        outcomes = [reader.accept(record) for record in self.boundary.delivered()]
        events = [EventRecord.from_bytes(one.event) for one in outcomes if one.event is not None]
        return events, [one.report for one in outcomes if one.report is not None]

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
        expected: list[EventRecord] = self._records(last)
        events: list[EventRecord] = []

        def through() -> bool:
            state = self.boundary.queue()
            if state.left or state.waiting:
                return False
            events[:] = self.expected()[0]
            return events[-1:] == expected

        wait_for(
            "the rules to be used up and the last event to be delivered",
            through,
            deadline=30,
            error=HarnessError,
            last_seen=lambda: f"{self.boundary.queue()}",
        )
        records = self.queue.wait_for(len(events), self.start)
        _same("guest's queue", records, events)
        forwarded = self.guest.wait_propagated(len(events), self._trace_start)
        named = [trace.PropagatedEvent(event.name, event.sid or 0) for event in events]
        _same("QEMU's trace", forwarded, named)
        return records[:-1]

    def _records(self, dma: Dma) -> list[EventRecord]:
        return dma.expected(EventType.F_TRANSLATION, self.testdev.device.vsid)


def _same(witness: str, got: Sequence[object], expected: Sequence[object]) -> None:
    differs = difference(got, expected)
    if differs:
        raise ProductError(f"{witness}: {differs}")
