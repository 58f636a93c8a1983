"""When events come faster than QEMU reads them, the kernel drops some, and QEMU reports the
loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from harness.boundary.account import Account
from harness.boundary.client import SMMUV3, Boundary, behind_boundary
from harness.boundary.on_host.rules import Depth
from harness.devices.dma import ACCESS_BYTES, UNMAPPED, Direction, Dma
from harness.devices.testdev import IommuTestdev
from harness.errors import LabError
from harness.faults.stall import stalled
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.host import Host
from harness.host.probes import Hits, vevents_reported
from harness.smmu import loss, trace
from harness.smmu.events import EventType
from harness.smmu.loss import Lost, Overflowed, Report, count_lost
from harness.smmu.vevents import INT_MAX, VEvent
from harness.waiting import wait_for

DEVICES = (SmmuSpec(devices=("edu", "iommu-testdev")),)
#: The guest's queue has 512 entries. QEMU asks for a vEVENTQ of the same depth.
SMALL_QUEUES = GuestSpec(smmus=DEVICES, small_queues=True)
SHALLOW = behind_boundary(GuestSpec(smmus=DEVICES), {SMMUV3: [Depth(64)]})

FLOOD = Dma(UNMAPPED, 4096 * ACCESS_BYTES, Direction.WRITE)
#: Seconds between the command and its flood. QEMU must have stalled by then, which is checked.
HEAD_START = 3

pytestmark = pytest.mark.needs("kprobe")


@contextlib.contextmanager
def flooded_while_stalled(guest: Guest, host: Host, testdev: IommuTestdev) -> Iterator[None]:
    """Stall QEMU, flood it until the kernel has reported all events, let QEMU continue, and run the
    body."""
    with vevents_reported(host.connection) as seen:
        flood = testdev.command(FLOOD)
        guest.run(f"(sleep {HEAD_START}; {flood}) >/dev/null 2>&1 &")
        with stalled(guest):
            if seen():
                raise LabError("the flood came before QEMU stood still", fix="run the test again")
            _wait_reported(FLOOD.faults, seen)
        yield


def _wait_reported(count: int, seen: Hits) -> None:
    """Wait until the host's kernel has reported `count` events to the vEVENTQ, dropped or not."""
    wait_for(
        "the kernel to have had all events for the queue",
        lambda: len(seen()) >= count,
        deadline=30,
        error=LabError,
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
    guest: Guest, host: Host, testdev: IommuTestdev
) -> None:
    queue = guest.event_queue()
    depth = queue.geometry().entries
    mark, trace_start = queue.mark(), guest.trace_size()
    flood = FLOOD.expected(EventType.F_TRANSLATION, testdev.vsid)
    assert depth < len(flood)

    with flooded_while_stalled(guest, host, testdev):
        queue.expect(flood[:depth], mark)
        next_mark = queue.mark()
        last = Dma(2 * UNMAPPED, ACCESS_BYTES, Direction.WRITE)
        testdev.perform(last)

    queue.expect(last.expected(EventType.F_TRANSLATION, testdev.vsid), next_mark)
    forwarded = guest.wait_propagated(depth + 1, trace_start)
    named = trace.PropagatedEvent("F_TRANSLATION", testdev.vsid)
    assert forwarded == [named] * (depth + 1)
    # QEMU reports the loss at the LOST_EVENTS header, and not again at the gap that follows it.
    said = [message.report for message in loss.messages(guest.qemu_messages())]
    assert said == [Overflowed()]


@pytest.mark.covers("LOSS-04")
@pytest.mark.guest(SHALLOW)
def test_what_is_lost_while_qemu_stands_still_is_counted(
    guest: Guest, host: Host, testdev: IommuTestdev, account: Account, boundary: Boundary
) -> None:
    with flooded_while_stalled(guest, host, testdev):
        received = account.close()

    events = map(VEvent.decode, boundary.delivered())
    assert count_lost(events, after=INT_MAX) == FLOOD.faults - len(received)
    assert 0 < len(received) < FLOOD.faults
    assert gaps(account.reported()) == gaps(account.expected()[1])


@pytest.mark.covers("LOSS-04")
@pytest.mark.guest(SHALLOW)
def test_what_is_lost_while_qemu_falls_behind_is_counted(
    host: Host, account: Account, boundary: Boundary
) -> None:
    sent = 20_000
    with vevents_reported(host.connection) as seen:
        account.fault(sent)
        _wait_reported(sent, seen)
    received = account.close()

    events = map(VEvent.decode, boundary.delivered())
    assert count_lost(events, after=INT_MAX) == sent - len(received)
    assert len(received) < sent, "nothing was lost"
    assert gaps(account.reported()) == gaps(account.expected()[1])
