"""When events come faster than QEMU reads them, the kernel drops some, and QEMU reports the
loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from harness.boundary.account import Account
from harness.boundary.client import SMMUV3, Boundary, behind_boundary
from harness.boundary.on_host.rules import Depth
from harness.devices.dma import UNMAPPED
from harness.devices.source import FaultSource
from harness.errors import LabError, ProductError
from harness.expectation import expect
from harness.faults.stall import stalled
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import FLOODER
from harness.host.host import Host
from harness.host.probes import Hits, vevents_reported
from harness.smmu import loss, trace
from harness.smmu.loss import Lost, Overflowed, Report, count_lost
from harness.smmu.vevents import INT_MAX, VEvent
from harness.waiting import wait_for

DEVICES = (SmmuSpec(devices=(FLOODER,)),)
#: The guest's queue has 512 entries. QEMU asks for a vEVENTQ of the same depth.
SMALL_QUEUES = GuestSpec(smmus=DEVICES, small_queues=True)
SHALLOW = behind_boundary(GuestSpec(smmus=DEVICES), {SMMUV3: [Depth(64)]})

#: The accesses of a flood. Each is at another address and raises one event. It goes on until all
#: that is before a stalled QEMU is full, also a boundary on a host that is busy: what is lost then
#: is the flood's end.
FLOOD = 20_000
#: Milliseconds between the prepared command and its flood. QEMU must have stalled by then, which is
#: checked.
HEAD_START_MS = 3000
#: Files of the guest: what the prepared command printed, and one that is there once it has ended.
PREPARED, ENDED = "/tmp/prepared", "/tmp/ended"

pytestmark = pytest.mark.needs("kprobe")


@contextlib.contextmanager
def flooded_while_stalled(guest: Guest, host: Host, flooder: FaultSource) -> Iterator[None]:
    """Stall QEMU, flood it until the kernel has reported all events, let QEMU continue, and run the
    body."""
    flood = flooder.command(flooder.burst(FLOOD), delay_ms=HEAD_START_MS)
    with vevents_reported(host.session) as seen:
        guest.run(f"({flood}; echo $? >{ENDED}) >{PREPARED} 2>&1 &")
        _wait_written(guest, PREPARED)
        with stalled(guest):
            if seen():
                raise LabError("the flood came before QEMU stood still", fix="run the test again")
            _wait_reported(FLOOD, seen)
        # The command may need QEMU to end, and the device is in use until then.
        _wait_written(guest, ENDED)
        yield


def _wait_written(guest: Guest, file: str) -> None:
    """Wait until a file of the guest has text."""
    wait_for(
        f"the flood to write {file}",
        lambda: guest.run(f"test -s {file}", check=False).status == 0,
        deadline=30,
        error=LabError,
        last_seen=lambda: guest.run(f"cat {PREPARED}", check=False).text,
    )


def _wait_reported(count: int, seen: Hits) -> None:
    """Wait until the host's kernel has reported `count` events to the vEVENTQ, dropped or not.
    Raises ProductError: its driver of the SMMU has lost some."""
    wait_for(
        "the kernel to have had all events for the queue",
        lambda: len(seen()) >= count,
        deadline=30,
        error=ProductError,
        last_seen=lambda: f"{len(seen())} of {count} events",
    )


def gaps(reports: list[Report]) -> list[Report]:
    """Return the reports that have a count. The others are left out because QEMU reports only the
    first of several overflows."""
    return [report for report in reports if isinstance(report, Lost)]


@pytest.mark.covers("LOSS-04")
@pytest.mark.needs("small-queues")
@pytest.mark.guest(SMALL_QUEUES)
def test_the_queue_holds_its_depth_while_qemu_stands_still(
    guest: Guest, host: Host, flooder: FaultSource
) -> None:
    if guest.spec.boundary:
        pytest.skip("every guest of this host has a boundary, which holds records as well")
    queue = guest.event_queue()
    depth = queue.geometry().entries
    mark, trace_start = queue.mark(), guest.trace_size()
    flood = flooder.expected(flooder.burst(FLOOD))
    assert depth < len(flood)

    with flooded_while_stalled(guest, host, flooder):
        records = queue.expect(flood[:depth], mark)
        next_mark = queue.mark()
        last = flooder.burst(1, 2 * UNMAPPED)
        flooder.perform(last)

    records += queue.expect(flooder.expected(last), next_mark)
    forwarded = guest.wait_propagated(len(records), trace_start)
    named = trace.PropagatedEvent("F_TRANSLATION", flooder.vsid)
    expect("QEMU's trace", forwarded, [named] * len(records))
    # QEMU reports the loss at the LOST_EVENTS header, and not again at the gap that follows it.
    said = [message.report for message in loss.messages(guest.qemu_messages())]
    assert said == [Overflowed()]


@pytest.mark.covers("LOSS-04")
@pytest.mark.guest(SHALLOW)
def test_what_is_lost_while_qemu_stands_still_is_counted(
    guest: Guest, host: Host, flooder: FaultSource, account: Account, boundary: Boundary
) -> None:
    with flooded_while_stalled(guest, host, flooder):
        received = account.close()

    events = map(VEvent.decode, boundary.delivered())
    assert count_lost(events, after=INT_MAX) == FLOOD - len(received)
    assert 0 < len(received) < FLOOD
    assert gaps(account.reported()) == gaps(account.expected()[1])
    # No event came after the last one that was lost: of that only a LOST_EVENTS header tells.
    assert Overflowed() in account.reported()


@pytest.mark.covers("LOSS-04")
@pytest.mark.guest(SHALLOW)
def test_what_is_lost_while_qemu_falls_behind_is_counted(
    host: Host, account: Account, boundary: Boundary
) -> None:
    with vevents_reported(host.session) as seen:
        account.fault(FLOOD)
        _wait_reported(FLOOD, seen)
    received = account.close()

    events = map(VEvent.decode, boundary.delivered())
    assert count_lost(events, after=INT_MAX) == FLOOD - len(received)
    assert gaps(account.reported()) == gaps(account.expected()[1])
    if len(received) == FLOOD:
        pytest.skip("QEMU has kept up with the device: nothing was lost")
