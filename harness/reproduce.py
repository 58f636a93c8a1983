"""Show each known upstream defect with the fewest steps, for the person who repairs it.

`hil reproduce ID` runs these.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness import kernel_log
from harness.boundary.client import Boundary, behind_boundary
from harness.boundary.on_host.rules import Inject, LostHeader, Rule
from harness.devices import source
from harness.devices.dma import UNMAPPED, Direction
from harness.errors import HarnessError, ProductError
from harness.faults.guest_tables import write_gbpa
from harness.guest import description
from harness.guest.console import GuestCrashedError
from harness.guest.description import EXPLICIT, GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug
from harness.guest.qemu import ask
from harness.host.ability import ANY, READER, Ability
from harness.report.defects import CATALOGUE, Defect
from harness.smmu import loss
from harness.smmu.events import EventRecord, EventType
from harness.smmu.loss import Overflowed, Report, ShortRead
from harness.smmu.vevents import INT_MAX, QueueType, VEvent

#: Print a line that tells the reader what is done or found.
Say = Callable[[str], None]
#: Perform the steps that cause a defect on a host, print them, and return whether the defect is
#: there. Raises ProductError if that cannot be told because something else is wrong.
Show = Callable[[Fleet, Say], bool]

PLAIN = GuestSpec(smmus=(SmmuSpec(devices=(READER,)),))
BEHIND_BOUNDARY = behind_boundary(PLAIN)
#: An SMMU whose only device is plugged later. With a CMDQV that device would have to stay.
PLUGGED = SmmuSpec(hot=(ANY,), properties=(("cmdqv", "off"),))
#: So many turns of four devices without an error make it unlikely that the defect is there. It was
#: seen once in fifty to two hundred devices.
BUSY_TURNS = 300
_WHOLE = QueueType.ARM_SMMUV3.record_bytes


@dataclass(frozen=True)
class Delivery:
    """Something that QEMU reads from the queue's file: its description, and the rule that delivers
    it, made from an event's bytes."""

    words: str
    rule: Callable[[bytes], Rule]


def _in(
    guest: GuestSpec, show: Callable[[Guest, Say], bool], *, kernel_report: str | None = None
) -> Show:
    """Return what shows a defect in a clean guest of this description. `kernel_report` is a regular
    expression for what a kernel reports because of the defect (Watch.expecting)."""

    def show_there(fleet: Fleet, say: Say) -> bool:
        expected = [] if kernel_report is None else [kernel_report]
        with fleet.watch.expecting(expected), fleet.guests([guest]) as (running,):
            say(f"$ {shlex.join(running.command_line())}\n")
            return show(running, say)

    return show_there


def _record(sequence: int, words: str) -> Delivery:
    """Return the delivery of a whole record with a sequence number."""
    return Delivery(words, lambda event: Inject(VEvent(sequence, event).encode()))


def _read(
    deliveries: Sequence[Delivery], expected: Sequence[Report], events: int
) -> Callable[[Guest, Say], bool]:
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

    return show


def _gbpa(guest: Guest, say: Say) -> bool:
    """Perform the same unmapped DMA before and after the guest writes GBPA."""
    queue, reader = guest.event_queue(), source(guest, Ability.READ)
    read = reader.burst(1, direction=Direction.READ)

    def faults() -> int:
        mark = queue.mark()
        reader.perform(read)
        # With the defect there is no event at all, so the wait ends without one.
        with contextlib.suppress(ProductError):
            queue.wait_for(1, mark, deadline=3)
        return queue.count_since(mark)

    say(f"the SMMU is enabled, and nothing is mapped for {reader}: {read} should raise 1 event")
    before = faults()
    say(f"it raises: {before}")
    if before != 1:
        raise ProductError(
            "the DMA does not raise 1 event even before GBPA is written, so that nothing can be "
            "said about the defect"
        )
    write_gbpa(guest, queue, 0)
    say("the guest writes GBPA: UPDATE without ABORT. GBPA has an effect only while SMMUEN is 0")
    say("the same DMA should raise 1 event again")
    found = faults()
    say(f"it raises: {found}")
    return found == 0


def _dma_bufs(guest: Guest, say: Say) -> bool:
    """Compare QEMU's dma-buf descriptors before a device is plugged and after it is unplugged."""
    device = guest.device(ANY)

    def held() -> int:
        files = guest.host_run(f"ls -l /proc/{guest.qemu_pid()}/fd")
        return files.count("/dmabuf:")

    before = held()
    say(f"QEMU has {before} descriptors of dma-bufs; a device is plugged and unplugged")
    plug(guest, device)
    say(f"  plugged: {held()}")
    eject(guest, device)
    after = held()
    say(f"  unplugged, and deleted by QEMU: {after}, should be {before}")
    return after > before


def _busy_queue(guest: Guest, say: Say) -> bool:
    """Plug and unplug the only devices of several SMMUs until QEMU says that it cannot free
    something."""
    say(f"{len(guest.devices)} devices, each the only one of its SMMU, are plugged and unplugged")
    say("until QEMU says that it cannot free what belongs to them")
    for turn in range(1, BUSY_TURNS + 1):
        plug(guest, *guest.devices)
        eject(guest, *guest.devices)
        said = guest.qemu_messages()
        if said:
            say(f"turn {turn}:\n{said}")
            return True
    say(f"QEMU said nothing in {BUSY_TURNS} turns")
    return False


def _cmdqv_without_a_device(fleet: Fleet, say: Say) -> bool:
    """Ask QEMU for cmdqv=on without an assigned device, with all other properties set explicitly so
    that nothing is to be copied from a device."""
    smmu = SmmuSpec(properties=tuple({**EXPLICIT, "cmdqv": "on"}.items()))
    bus = "-object iommufd,id=iommufd0 -device pxb-pcie,id=pcie.1,bus=pcie.0"
    options = f"{bus} -device {smmu.option(0)}"
    say("QEMU is started, paused, with an SMMU that has no device, and should refuse:")
    say(f"  {options}")
    answer = ask(fleet.host, options)
    say(f"QEMU {'accepts it' if answer.accepted else 'refuses it'}")
    for line in answer.said:
        say(f"  {line}")
    return answer.accepted


def _cmdqv_by_hot_plug(guest: Guest, say: Say) -> bool:
    """Plug a device into an SMMU with cmdqv=auto while the guest is paused at its start."""
    (device,) = guest.devices
    say("the guest is paused before its first instruction; its SMMU has cmdqv=auto and no device")
    properties = description.device_properties(device)
    say(f"device_add {properties}")
    guest.monitor.execute("device_add", **properties)
    say("cont: the guest should boot")
    guest.monitor.execute("cont")
    try:
        guest.wait_ready()
    except GuestCrashedError as crash:
        say(f"it crashes: {crash.message}")
        return True
    say("it boots")
    return False


#: What shows each defect, by the names that the catalogue of defects, suites/defects.yaml, uses.
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
    "cmdqv_by_hot_plug": _in(
        GuestSpec(smmus=(SmmuSpec(hot=(ANY,), properties=(("cmdqv", "auto"),)),), paused=True),
        _cmdqv_by_hot_plug,
        kernel_report=kernel_log.CRASH,
    ),
    "dma_bufs": _in(GuestSpec(smmus=(PLUGGED,)), _dma_bufs),
    "busy_queue": _in(
        GuestSpec(smmus=(PLUGGED,) * 4),
        _busy_queue,
    ),
}


def reproducer(defect: Defect) -> Show:
    """Return what shows a defect. Raises HarnessError if the catalogue names a reproducer that does
    not exist."""
    if defect.reproducer not in REPRODUCERS:
        raise HarnessError(
            f"{defect.id}: found {defect.reproducer!r} as its reproducer in {CATALOGUE}; "
            f"allowed: {', '.join(REPRODUCERS)}",
            fix="name one of these, or add it to harness/reproduce.py",
        )
    return REPRODUCERS[defect.reproducer]


def _words(reports: Sequence[Report]) -> str:
    return ", ".join(str(report) for report in reports) or "nothing"
