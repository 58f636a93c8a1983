"""When allocating or destroying the vEVENTQ fails, QEMU reports it and the guest keeps running."""

from __future__ import annotations

import errno
import os

import pytest

from harness.boundary.client import SMMUV3, Boundary, behind_boundary
from harness.boundary.on_host.rules import BusyOnDestroy, FailCall
from harness.devices import source_of
from harness.errors import ProductError
from harness.faults.command_queue import restart_queues
from harness.faults.guest_tables import GuestTables
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.guest.hotplug import plug, unplug
from harness.host.ability import WRITER, Ability
from harness.host.host import Host
from harness.smmu.commands import cfgi_ste
from harness.waiting import wait_for

#: A CMDQV would not let its device be unplugged.
ONE_DEVICE = GuestSpec(smmus=(SmmuSpec(devices=(WRITER,), properties=(("cmdqv", "off"),)),))
FAULTS = 4


def without_queue(error: int) -> GuestSpec:
    """Return a guest for which every IOMMU_VEVENTQ_ALLOC fails."""
    return behind_boundary(ONE_DEVICE, {SMMUV3: [FailCall(error, count=1000)]})


def failed(error: int) -> str:
    """Return QEMU's message for an allocation that failed with this error."""
    return f"IOMMU_VEVENTQ_ALLOC failed: {os.strerror(error)}"


@pytest.mark.covers("LOSS-10")
@pytest.mark.guest(ONE_DEVICE)
@pytest.mark.parametrize(
    "error", [errno.ENOMEM, errno.EINVAL, errno.EOPNOTSUPP], ids=errno.errorcode.get
)
def test_the_guest_runs_without_a_queue(host: Host, fleet: Fleet, error: int) -> None:
    with fleet.guests([without_queue(error)], Freshness.COLD) as (guest,):
        assert failed(error) in guest.qemu_messages()
        queue = guest.event_queue()
        assert queue.enabled
        # Without a queue the event cannot reach the guest, so the host's kernel logs it.
        mark, before = queue.mark(), host.kernel_log_time()
        writer = source_of(guest, guest.device(WRITER), Ability.WRITE)
        writer.perform(writer.burst(FAULTS))
        wait_for(
            "the host to log the fault",
            lambda: "event: F_TRANSLATION" in host.kernel_log(before),
            deadline=20,
            error=ProductError,
        )
        assert queue.since(mark) == []


@pytest.mark.covers("LOSS-10")
@pytest.mark.guest(ONE_DEVICE)
def test_a_command_queue_error_is_reported_beside_a_failed_allocation(fleet: Fleet) -> None:
    with fleet.guests([without_queue(errno.EOPNOTSUPP)], Freshness.SHARED) as (guest,):
        sid = guest.device(WRITER).vsid
        queue = guest.event_queue()
        GuestTables(guest, queue, sid).break_stream_table_entry()
        allocations = guest.qemu_messages().count(failed(errno.EOPNOTSUPP))

        restart_queues(guest, queue, cfgi_ste(sid))

        messages = guest.qemu_messages()
        assert f"Invalid STE config for sid {sid:#x}" in messages
        assert messages.count(failed(errno.EOPNOTSUPP)) == allocations + 1
        wait_for(
            "the guest to report the command",
            lambda: guest.kernel_log("CMDQ error"),
            deadline=20,
            error=ProductError,
        )


@pytest.mark.covers("LOSS-11")
@pytest.mark.guest(behind_boundary(ONE_DEVICE))
def test_a_queue_that_is_busy_when_destroyed(guest: Guest, boundary: Boundary) -> None:
    device = guest.device(WRITER)
    old = boundary.queue().id
    boundary.apply(BusyOnDestroy())

    unplug(guest, device)
    assert f"Failed to free id: {old} {os.strerror(errno.EBUSY)}" in guest.qemu_messages()
    plug(guest, device)

    calls = [(one.call, one.did, one.answer) for one in boundary.answered()]
    assert calls == [
        ("VEVENTQ_ALLOC", "pass", "ok"),
        ("DESTROY", "busy_on_destroy", "EBUSY"),
        ("VEVENTQ_ALLOC", "pass", "ok"),
    ]
    writer, queue = source_of(guest, device, Ability.WRITE), guest.event_queue()
    mark = queue.mark()
    dma = writer.burst(FAULTS)
    writer.perform(dma)
    queue.expect(writer.expected(dma), mark)
