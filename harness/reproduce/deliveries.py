"""Give records of one's own to QEMU's vEVENTQ handler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.boundary.client import Boundary, behind_boundary
from harness.boundary.on_host.rules import Inject, Rule
from harness.devices.dma import UNMAPPED
from harness.guest.guest import Guest
from harness.host.ability import READER
from harness.reproduce.show import PLAIN, Say, Show, in_guest
from harness.smmu import loss
from harness.smmu.events import EventRecord, EventType
from harness.smmu.loss import Report
from harness.smmu.vevents import VEvent


@dataclass(frozen=True)
class Delivery:
    """Something that QEMU reads from the queue's file: its description, and the rule that delivers
    it, made from an event's bytes."""

    words: str
    rule: Callable[[bytes], Rule]


def record(sequence: int, words: str) -> Delivery:
    """Return the delivery of a whole record with a sequence number."""
    return Delivery(words, lambda event: Inject(VEvent(sequence, event).encode()))


def read(deliveries: Sequence[Delivery], expected: Sequence[Report], events: int) -> Show:
    """Return what gives `deliveries` to QEMU's vEVENTQ handler, in order. A correct handler reports
    `expected`, and the guest gets `events` events."""

    def show(guest: Guest, say: Say) -> bool:
        boundary, queue = Boundary(guest), guest.event_queue()
        event = EventRecord.stage1_fault(
            EventType.F_TRANSLATION,
            sid=guest.device(READER).vsid,
            input_addr=UNMAPPED,
            rnw=False,
        )
        mark, state = queue.mark(), boundary.queue()
        say(f"QEMU reads its vEVENTQ (type {state.address.kind.value}, id {state.id}) and gets")
        rules = []
        for number, delivery in enumerate(deliveries, 1):
            say(f"  {number}. {delivery.words}")
            rules.append(delivery.rule(event.to_bytes()))
        boundary.apply(*rules)
        queue.wait_for(events, mark)
        say(f"the guest has the {events} events of whole records in its event queue")
        found = [message.report for message in loss.messages(guest.qemu_messages())]
        say(f"QEMU should say: {_words(expected)}")
        say(f"QEMU says:       {_words(found)}")
        return found != list(expected)

    return in_guest(behind_boundary(PLAIN), show)


def _words(reports: Sequence[Report]) -> str:
    return ", ".join(str(report) for report in reports) or "nothing"
