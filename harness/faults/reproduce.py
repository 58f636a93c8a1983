"""Upstream defects, each shown with the fewest steps: for whoever is to mend it.

`hil reproduce ID` runs them. They need no gadget: the boundary hands QEMU records of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.faults.boundary import Boundary, supervised
from harness.faults.rules import Inject, LostHeader, Rule
from harness.guest.description import Guest as Description
from harness.guest.description import Smmu
from harness.guest.guest import Guest
from harness.smmu import loss
from harness.smmu.events import EventRecord, EventType
from harness.smmu.loss import Overflowed, Report, ShortRead
from harness.smmu.vevents import INT_MAX, QueueType, VEvent

#: Tells the reader what is being done.
Say = Callable[[str], None]

GUEST = supervised(Description(smmus=(Smmu(devices=("edu",)),)))
_WHOLE = QueueType.ARM_SMMUV3.record_bytes


@dataclass(frozen=True)
class Delivery:
    """Something QEMU reads from the queue's file, and what that is in words."""

    words: str
    rule: Callable[[bytes], Rule]


@dataclass(frozen=True)
class Reproducer:
    """A defect of QEMU's handler for the SMMUv3's vEVENTQ: what it is handed, in order, and what a
    correct one says of that. `why` explains the defect."""

    id: str
    title: str
    why: str
    deliveries: tuple[Delivery, ...]
    expected: tuple[Report, ...]
    events: int


def _record(sequence: int, words: str) -> Delivery:
    return Delivery(words, lambda event: Inject(VEvent(sequence, event).encode()))


REPRODUCERS = {
    one.id: one
    for one in (
        Reproducer(
            "LOSS-05",
            "the wrap of the sequence numbers is reported as a loss of 2^31 events",
            "The kernel counts with (n + 1) & INT_MAX (drivers/iommu/iommufd/iommufd_private.h, "
            "iommufd_vevent_handler). QEMU takes sequence - last != 1 in 32 bits for a gap.",
            (
                _record(INT_MAX, f"a record numbered {INT_MAX}, the last number there is"),
                _record(0, "a record numbered 0, the one after it"),
            ),
            (),
            events=2,
        ),
        Reproducer(
            "LOSS-07",
            "a short read is not reported once an overflow was",
            "The messages for a failed read, a short read and an overflow are printed at one place "
            "that prints once only: the first of them silences the others for good.",
            (
                _record(0, "a record numbered 0"),
                Delivery("a LOST_EVENTS header: 8 bytes", lambda _: LostHeader(1)),
                Delivery(
                    f"the first 20 bytes of a record of {_WHOLE}",
                    lambda event: Inject(VEvent(2, event).encode()[:20]),
                ),
                _record(3, "a record numbered 3"),
            ),
            (Overflowed(), ShortRead(20, _WHOLE)),
            events=2,
        ),
    )
}


def reproducer(name: str) -> Reproducer:
    """Raises HarnessError for an id that has none."""
    if name not in REPRODUCERS:
        raise HarnessError(f"no reproducer for {name}", fix=f"choose {', '.join(REPRODUCERS)}")
    return REPRODUCERS[name]


def reproduce(wanted: Reproducer, guest: Guest, say: Say) -> bool:
    """Do it to a clean guest made of GUEST; whether the defect is there.

    Raises ProductError when the events themselves do not reach the guest.
    """
    boundary, queue = Boundary(guest), guest.event_queue()
    device = guest.device("edu")
    event = EventRecord.stage1_fault(
        EventType.F_TRANSLATION, sid=device.vsid, input_addr=0x4000_0000, rnw=False
    )
    mark, state = queue.mark(), boundary.queue()
    say(f"QEMU reads its vEVENTQ (type {state.address.kind.value}, id {state.id}) and gets")
    rules = []
    for number, delivery in enumerate(wanted.deliveries, 1):
        say(f"  {number}. {delivery.words}")
        rules.append(delivery.rule(event.to_bytes()))
    boundary.apply(*rules)
    queue.wait_for(wanted.events, mark)
    say(f"the guest has the {wanted.events} events of whole records in its event queue")
    found = [message.report for message in loss.messages(guest.qemu_messages())]
    say(f"QEMU should say: {_words(wanted.expected)}")
    say(f"QEMU says:       {_words(found)}")
    return found != list(wanted.expected)


def _words(reports: Sequence[Report]) -> str:
    return ", ".join(str(report) for report in reports) or "nothing"
