"""A CMDQV in use survives unplug, reset and reboot, and two guests with one each stay apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.errors import HarnessError
from harness.expectation import only
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.fixtures.guests import WITH_CMDQV, with_cmdqv
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug, unplug
from harness.host.ability import ANY, DISK
from harness.host.host import Silicon
from harness.qmp import QmpRefusedError
from harness.smmu.cmdqv import QueueError
from harness.smmu.commands import sync
from harness.smmu.trace import TraceEvent
from suites.cmdqv.errors import CFGI_STE, error_map, error_maps, logged, wait_for_map
from suites.cmdqv.queues import BLOCKED, enabled

ONE = GuestSpec(smmus=(SmmuSpec(devices=(ANY,), properties=(("cmdqv", "on"),)),))

pytestmark = [
    pytest.mark.needs("cmdqv"),
    pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED),
]


@pytest.mark.covers("CQV-11")
@pytest.mark.parametrize("how", ["reset", "reboot"])
def test_a_restart_frees_the_queues_and_allocates_them_anew(
    guest: Guest, write_blocks: Callable[[int, int], None], how: str
) -> None:
    write_blocks(0, 4)
    before = guest.trace_size()
    old = guest.trace().numbers(TraceEvent.ALLOC_HW_QUEUE, "queue_id")[-2:]

    if how == "reset":
        guest.monitor.execute("system_reset")
    else:
        guest.console.send("reboot -f")
    guest.wait_ready()

    trace = guest.trace(before)
    freed = trace.numbers(TraceEvent.FREE_ID, "id")
    assert [queue for queue in freed if queue in old] == old[::-1]
    assert trace.count(TraceEvent.ALLOC_HW_QUEUE) == 2
    assert trace.texts(TraceEvent.CMDQV_INIT_REGS) == ["register init, param=0x00004011"]
    assert enabled(GuestCmdqv(guest))
    for queue in range(2):
        write_blocks(queue, 4)


@pytest.mark.covers("CQV-09")
@pytest.mark.guest(with_cmdqv(DISK, ANY))
def test_the_first_device_cannot_be_unplugged_and_others_can(
    guest: Guest, write_blocks: Callable[[int, int], None]
) -> None:
    """QEMU keeps the first device, because the vIOMMU was allocated for it."""
    first, second = guest.devices
    with pytest.raises(QmpRefusedError, match=BLOCKED):
        unplug(guest, first)
    unplug(guest, second)
    write_blocks(0, 4)


@pytest.mark.covers("CQV-09")
@pytest.mark.guest(with_cmdqv(DISK, ANY))
def test_the_guest_may_give_up_any_other_device(
    guest: Guest, write_blocks: Callable[[int, int], None]
) -> None:
    """The guest begins: it powers the second device's slot off, and gets the device again."""
    second = guest.devices[1]
    for _ in range(2):
        eject(guest, second)
        write_blocks(0, 4)
        plug(guest, second)
    write_blocks(1, 4)
    assert enabled(GuestCmdqv(guest))
    assert guest.qemu_messages() == ""


@pytest.mark.covers("CQV-13")
@pytest.mark.guest(ONE, ONE, freshness=Freshness.SHARED)
def test_an_error_of_one_guest_does_not_reach_another(guests: list[Guest]) -> None:
    """The error of a guest's queue is in that guest's error map only, and the other guest's queues
    stay enabled."""
    before = [(guest.trace_size(), logged(guest)) for guest in guests]
    cmdqvs = [GuestCmdqv(guest) for guest in guests]
    # Each guest has another queue in error. The second guest's error comes after the first one's,
    # so that an error map of the first would be seen in the second by then.
    for lvcmdq, (guest, cmdqv, (start, _)) in enumerate(zip(guests, cmdqvs, before, strict=True)):
        index = cmdqv.give(lvcmdq, CFGI_STE, sync())
        wait_for_map(guest, start, lvcmdq)
        assert all(enabled(other) for other in cmdqvs if other is not cmdqv)
        cmdqv.wait_done(lvcmdq)
        cmdqv.take_back(lvcmdq, index)

    for lvcmdq, (guest, (start, reported)) in enumerate(zip(guests, before, strict=True)):
        assert set(error_maps(guest, start)) == {error_map(lvcmdq)}
        assert logged(guest) == reported + 1
    assert all(enabled(cmdqv) for cmdqv in cmdqvs)


@pytest.mark.covers("CQV-13")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.guest(ONE, ONE, freshness=Freshness.SHARED)
def test_two_guests_have_an_interface_each_and_no_event_crosses(
    guests: list[Guest], silicon: Silicon
) -> None:
    busy, idle = guests
    before, done = [(guest.trace_size(), logged(guest)) for guest in guests], silicon.count()
    cmdqv = GuestCmdqv(busy)
    cmdqv.carry_out(0, sync())
    interface = only("interfaces in use", {vintf for vintf, *_ in silicon.commands(done)})
    silicon.inject(interface, 0, QueueError.ILLEGAL)
    cmdqv.carry_out(0, sync())

    wait_for_map(busy, before[0][0], 0)
    assert error_maps(idle, before[1][0]) == []
    assert [logged(guest) for guest in guests] == [before[0][1] + 1, before[1][1]]
    # The idle guest uses the other interface. The model's error shows that this one exists, and
    # that it has no more than its two queues.
    with pytest.raises(HarnessError, match=f"VINTF {3 - interface} has no LVCMDQ 2"):
        silicon.inject(3 - interface, 2, QueueError.ILLEGAL)
    assert enabled(GuestCmdqv(idle))
