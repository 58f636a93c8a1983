"""A command queue is clean for its next owner, whatever the last one left in it."""

from __future__ import annotations

from functools import partial

import pytest

from harness.errors import ProductError
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.fixtures.guests import WITH_CMDQV
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.host.host import Silicon
from harness.smmu.cmdqv import Config, Page0
from harness.smmu.commands import sync
from harness.waiting import wait_for
from suites.cmdqv import traffic
from suites.cmdqv.errors import CFGI_STE, error_maps, logged
from suites.cmdqv.queues import QUEUES, acknowledged, enabled

pytestmark = [pytest.mark.needs("cmdqv"), pytest.mark.guest(WITH_CMDQV)]


def in_error(cmdqv: GuestCmdqv, lvcmdq: int) -> bool:
    """Return whether a logical queue has met an error that the guest's driver does not know of."""
    return not acknowledged(cmdqv, lvcmdq)


def check_clean(guest: Guest) -> None:
    """Check that a guest that was just booted has queues that work and have met no error."""
    cmdqv = GuestCmdqv(guest)
    assert enabled(cmdqv)
    for queue in QUEUES:
        assert acknowledged(cmdqv, queue)
        traffic.write_blocks(guest, queue, 4)
    assert error_maps(guest, 0) == []
    assert logged(guest) == 0
    assert guest.qemu_messages() == ""


@pytest.mark.covers("CQV-21")
@pytest.mark.long
def test_a_guest_that_was_killed_amid_an_error(fleet: Fleet) -> None:
    """Its driver is not told of the error, and its QEMU is killed: nobody clears anything, but for
    the host's kernel."""
    with fleet.guests([WITH_CMDQV], Freshness.SHARED) as (former,):
        cmdqv = GuestCmdqv(former)
        cmdqv.write(Config.VINTF_INT_MASK, 1)
        for queue in QUEUES:
            cmdqv.give(queue, sync(), CFGI_STE, *[sync()] * 5)
            wait_for(
                f"LVCMDQ {queue} to be in error",
                partial(in_error, cmdqv, queue),
                deadline=10,
                error=ProductError,
            )
        former.kill()
    with fleet.guests([WITH_CMDQV], Freshness.COLD) as (guest,):
        check_clean(guest)


@pytest.mark.covers("CQV-21")
@pytest.mark.needs("cmdqv-model")
def test_queues_that_nobody_has_cleared(fleet: Fleet, silicon: Silicon) -> None:
    """Not even the kernel has, as if the hardware had kept its state across a crash of the host."""
    fleet.clear()
    assert silicon.leave_dirty() >= len(QUEUES)
    with fleet.guests([WITH_CMDQV], Freshness.COLD) as (guest,):
        check_clean(guest)


@pytest.mark.covers("CQV-11")
@pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED)
def test_a_restart_after_an_odd_number_of_errors(guest: Guest) -> None:
    """GERROR and GERRORN, which are toggled at each error, differ from their state after a reset
    then, and agree with each other."""
    cmdqv = GuestCmdqv(guest)
    for queue in QUEUES:
        if not cmdqv.read(cmdqv.page0(queue, Page0.GERROR)):
            cmdqv.carry_out(queue, CFGI_STE, sync())
        assert cmdqv.read(cmdqv.page0(queue, Page0.GERROR))
        assert acknowledged(cmdqv, queue)
    guest.monitor.execute("system_reset")
    guest.wait_ready()
    assert enabled(GuestCmdqv(guest))
    mark = guest.trace_size()
    for queue in QUEUES:
        traffic.write_blocks(guest, queue, 4)
    assert error_maps(guest, mark) == []
