"""A guest's queues work at the limits of their depth: its command queues as small and as full as
they can be, and over their ends; the queue of its errors as shallow and as deep as the kernel
allows."""

from __future__ import annotations

import pytest

from harness.boundary.client import CMDQV, Boundary, behind_boundary
from harness.boundary.on_host.rules import Depth
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.fixtures.guests import WITH_CMDQV
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.ability import ANY
from harness.host.host import Silicon
from harness.smmu import loss
from harness.smmu.cmdqv import Page0
from harness.smmu.commands import sync
from harness.smmu.registers import CMDQ_CONS_RD
from suites.cmdqv.errors import CFGI_STE, check_refused, error_maps
from suites.cmdqv.queues import QUEUES, acknowledged, failed, new_ring

#: The smallest ring that a host takes has 32 bytes, and the largest fits into a page of the guest's
#: memory (drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c, tegra241_vintf_alloc_lvcmdq_user).
SMALLEST, LARGEST = 1, 8
#: The fewest and the most events that a vEVENTQ can be asked to hold (drivers/iommu/iommufd).
SHALLOWEST, DEEPEST = 1, 1 << 19


def guest_with(depth: int) -> GuestSpec:
    """Return a guest the errors of whose command queues are in a vEVENTQ of this depth."""
    plain = GuestSpec(smmus=(SmmuSpec(devices=(ANY,), properties=(("cmdqv", "on"),)),))
    return behind_boundary(plain, {CMDQV: [Depth(depth)]})


pytestmark = pytest.mark.needs("cmdqv")


@pytest.mark.covers("CQV-25")
@pytest.mark.guest(WITH_CMDQV)
@pytest.mark.parametrize("log2size", [SMALLEST, 2, 5, LARGEST])
def test_a_full_queue_is_carried_out_to_its_end(guest: Guest, log2size: int) -> None:
    """The queue is filled in one go, from its first entry on, then from the middle over its end,
    and to the first one again. The second queue has no other that depends on it."""
    cmdqv, ring = GuestCmdqv(guest), new_ring(guest, log2size)
    cmdqv.set_up(1, ring)
    assert not failed(cmdqv, 1)
    given = 0
    for count in (ring.entries, ring.entries // 2, ring.entries, ring.entries // 2, 1):
        cmdqv.give(1, *[sync()] * count)
        cmdqv.wait_done(1)
        given += count
        cons = cmdqv.read(cmdqv.page0(1, Page0.CONS))
        assert ring.index(cons) == ring.index(given)
        assert cons & ~CMDQ_CONS_RD == 0, "the queue has met an error"
        assert acknowledged(cmdqv, 1)


@pytest.mark.covers("CQV-25")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.guest(WITH_CMDQV)
@pytest.mark.parametrize("log2size", [SMALLEST, LARGEST])
def test_no_command_is_carried_out_twice_or_left_out(
    guest: Guest, silicon: Silicon, log2size: int
) -> None:
    cmdqv, ring = GuestCmdqv(guest), new_ring(guest, log2size)
    cmdqv.set_up(1, ring)
    for _ in range(3):
        before = silicon.count()
        cmdqv.give(1, *[sync()] * ring.entries)
        cmdqv.wait_done(1)
        assert [one[1:] for one in silicon.commands(before)] == [(1, *sync())] * ring.entries


@pytest.mark.covers("CQV-25")
@pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED)
@pytest.mark.parametrize("lvcmdq", QUEUES)
def test_the_error_of_a_full_queues_last_command_is_told(guest: Guest, lvcmdq: int) -> None:
    cmdqv, before = GuestCmdqv(guest), guest.trace_size()
    entries = cmdqv.ring(lvcmdq).entries
    index = cmdqv.give(lvcmdq, *[sync()] * (entries - 1), CFGI_STE)
    cmdqv.wait_done(lvcmdq)  # the driver has replaced the command that failed
    assert acknowledged(cmdqv, lvcmdq)
    cmdqv.take_back(lvcmdq, index)
    assert len(error_maps(guest, before)) >= 1


@pytest.mark.covers("CQV-25", "CQV-06")
@pytest.mark.parametrize(
    "depth",
    [
        pytest.param(depth, marks=pytest.mark.guest(guest_with(depth)))
        for depth in (SHALLOWEST, DEEPEST)
    ],
)
def test_errors_arrive_whatever_the_depth_of_their_queue(
    guest: Guest, boundary: Boundary, depth: int
) -> None:
    assert boundary.queue(CMDQV).depth == depth
    for lvcmdq in (*QUEUES, *QUEUES):
        check_refused(guest, lvcmdq, CFGI_STE)
    assert list(loss.messages(guest.qemu_messages())) == []


@pytest.mark.covers("CQV-25", "CQV-06")
@pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED)
def test_the_queue_of_errors_holds_one_of_each_command_queue(
    guest: Guest, boundary: Boundary
) -> None:
    """Each command queue can be in one error at a time. So many QEMU need not read at once."""
    assert boundary.queue(CMDQV).depth >= len(QUEUES)
