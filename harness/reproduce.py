"""Upstream defects, each shown with the fewest steps: for whoever is to mend it.

`hil reproduce ID` runs them.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.boundary.client import Boundary, behind_boundary
from harness.boundary.on_host.rules import Inject, LostHeader, Rule
from harness.devices import fault_source
from harness.devices.dma import UNMAPPED, Direction, Dma
from harness.errors import HarnessError, ProductError
from harness.faults.guest_tables import write_gbpa
from harness.guest.description import EXPLICIT, GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug
from harness.guest.qemu import ask
from harness.report.defects import CATALOGUE, Defect
from harness.smmu import loss
from harness.smmu.events import EventRecord, EventType
from harness.smmu.loss import Overflowed, Report, ShortRead
from harness.smmu.vevents import INT_MAX, QueueType, VEvent

#: Tells the reader what is being done.
Say = Callable[[str], None]
#: Does what brings a defect out on a host, says so, and gives whether the defect is there. Raises
#: ProductError when that cannot be told because more is wrong.
Show = Callable[[Fleet, Say], bool]

PLAIN = GuestSpec(smmus=(SmmuSpec(devices=("edu",)),))
BEHIND_BOUNDARY = behind_boundary(PLAIN)
#: Turns of four devices without an error that make it unlikely that there is one: it was seen one
#: time in fifty to two hundred devices.
BUSY_TURNS = 300
_WHOLE = QueueType.ARM_SMMUV3.record_bytes


@dataclass(frozen=True)
class Delivery:
    """Something QEMU reads from the queue's file, and what that is in words."""

    words: str
    rule: Callable[[bytes], Rule]


def _in(guest: GuestSpec, show: Callable[[Guest, Say], bool]) -> Show:
    """Show it in such a guest, a clean one."""

    def show_there(fleet: Fleet, say: Say) -> bool:
        with fleet.guests([guest]) as (running,):
            say(f"$ {shlex.join(running.command_line())}\n")
            return show(running, say)

    return show_there


def _record(sequence: int, words: str) -> Delivery:
    return Delivery(words, lambda event: Inject(VEvent(sequence, event).encode()))


def _read(
    deliveries: Sequence[Delivery], expected: Sequence[Report], events: int
) -> Callable[[Guest, Say], bool]:
    """Hand QEMU's vEVENTQ handler these, in order; a correct one says `expected`, and the guest
    gets `events` of them."""

    def show(guest: Guest, say: Say) -> bool:
        boundary, queue = Boundary(guest), guest.event_queue()
        event = EventRecord.stage1_fault(
            EventType.F_TRANSLATION,
            sid=guest.device("edu").vsid,
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

    return show


def _gbpa(guest: Guest, say: Say) -> bool:
    """DMA of a device that nothing is mapped for, before and after GBPA is written."""
    queue, edu = guest.event_queue(), fault_source(guest, "edu")
    read = Dma(UNMAPPED, 4, Direction.READ)

    def faults() -> int:
        mark = queue.mark()
        edu.perform(read)
        # Whatever it raised is there once QEMU has told of it; none is what the defect looks like.
        with contextlib.suppress(ProductError):
            queue.wait_for(1, mark, deadline=3)
        return queue.count_since(mark)

    say(f"the SMMU is on, and nothing is mapped for the edu: {read} should raise 1 event")
    before = faults()
    say(f"it raises: {before}")
    if before != 1:
        raise ProductError("the guest's SMMU does not do its work as it is; this shows nothing")
    write_gbpa(guest, queue, 0)
    say("the guest writes GBPA: UPDATE, and no ABORT. It rules while SMMUEN is 0 only")
    say("the same DMA should raise 1 event again")
    found = faults()
    say(f"it raises: {found}")
    return found == 0


def _dma_bufs(guest: Guest, say: Say) -> bool:
    """QEMU's dma-buf descriptors, before a device comes and after it has gone."""
    device = guest.device("edu")

    def held() -> int:
        files = guest.host_run(f"ls -l /proc/{guest.qemu_pid()}/fd")
        return files.count("/dmabuf:")

    before = held()
    say(f"QEMU has {before} descriptors of dma-bufs; a device is plugged and unplugged")
    plug(guest, device)
    say(f"  plugged: {held()}")
    eject(guest, device)
    after = held()
    say(f"  unplugged, QEMU has told that it is deleted: {after}, should be {before}")
    return after > before


def _busy_queue(guest: Guest, say: Say) -> bool:
    """First and last devices of their SMMUs, plugged and unplugged until QEMU fails to free."""
    say(f"the guest gives {len(guest.devices)} devices up, each the last one of its SMMU, and gets")
    say("them again, until QEMU says that it cannot free what belongs to them")
    for turn in range(1, BUSY_TURNS + 1):
        plug(guest, *guest.devices)
        eject(guest, *guest.devices)
        said = guest.qemu_messages()
        if said:
            say(f"turn {turn}:\n{said}")
            return True
    say(f"it had nothing to say in {BUSY_TURNS} turns")
    return False


def _cmdqv_without_a_device(fleet: Fleet, say: Say) -> bool:
    """QEMU's answer to cmdqv=on without an assigned device, when nothing else is to be copied from
    one."""
    smmu = SmmuSpec(properties=tuple({**EXPLICIT, "cmdqv": "on"}.items()))
    bus = "-object iommufd,id=iommufd0 -device pxb-pcie,id=pcie.1,bus=pcie.0"
    options = f"{bus} -device {smmu.option(0)}"
    say("QEMU is started, paused, with an SMMU that has no device, and should refuse:")
    say(f"  {options}")
    answer = ask(fleet.host, options)
    say(f"it {'takes it' if answer.accepted else 'refuses'}")
    for line in answer.said:
        say(f"  {line}")
    return answer.accepted


#: By the names that the catalogue of defects, suites/defects.yaml, has for them.
REPRODUCERS: dict[str, Show] = {
    "wrap": _in(
        BEHIND_BOUNDARY,
        _read(
            (
                _record(INT_MAX, f"a record numbered {INT_MAX}, the last number there is"),
                _record(0, "a record numbered 0, the one after it"),
            ),
            (),
            events=2,
        ),
    ),
    "short_read_after_overflow": _in(
        BEHIND_BOUNDARY,
        _read(
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
    ),
    "gbpa": _in(PLAIN, _gbpa),
    "cmdqv_without_a_device": _cmdqv_without_a_device,
    "dma_bufs": _in(GuestSpec(smmus=(SmmuSpec(hot=("edu",)),)), _dma_bufs),
    "busy_queue": _in(
        GuestSpec(smmus=tuple(SmmuSpec(hot=(role,)) for role in ("edu", "iommu-testdev") * 2)),
        _busy_queue,
    ),
}


def reproducer(defect: Defect) -> Show:
    """Return what shows a defect. Raises HarnessError if the catalogue names one that is not."""
    if defect.reproducer not in REPRODUCERS:
        raise HarnessError(
            f"{defect.id}: found {defect.reproducer!r} as its reproducer in {CATALOGUE}; "
            f"allowed: {', '.join(REPRODUCERS)}",
            fix="name one of these, or add it to harness/reproduce.py",
        )
    return REPRODUCERS[defect.reproducer]


def _words(reports: Sequence[Report]) -> str:
    return ", ".join(str(report) for report in reports) or "nothing"
