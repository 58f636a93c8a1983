"""What a guest's CMDQV takes, it gives back: each kind of IOMMU object, and of QEMU's descriptors,
is there as often as before a restart, a new ring, or a device that came and went."""

from __future__ import annotations

import pytest

from harness.boundary.client import behind_boundary
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.fixtures.guests import WITH_CMDQV
from harness.guest.census import Counting
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug, wait_ready
from harness.host.ability import ANY
from harness.host.host import Host, Silicon
from harness.smmu.cmdqv import Config
from harness.smmu.commands import Opcode, atc_inv, opcode, sync
from harness.smmu.trace import TraceEvent
from suites.cmdqv.queues import QUEUES, check_works, enabled, new_ring
from suites.hotplug.left import BUSY, dma_bufs, unexplained

#: The first device brings the CMDQV and stays, the second comes and goes.
HOT = behind_boundary(
    GuestSpec(smmus=(SmmuSpec(devices=(ANY,), hot=(ANY,), properties=(("cmdqv", "on"),)),))
)
#: Where CMDQV_PARAM has the logarithm of how many StreamIDs a guest has.
SIDS_SHIFT, SIDS_MASK = 12, 0xF

pytestmark = pytest.mark.needs("cmdqv")


def restart(guest: Guest) -> None:
    """Restart a guest, and wait until it has its devices again."""
    guest.monitor.execute("system_reset")
    guest.wait_ready()
    for device in guest.devices:
        wait_ready(guest, device)


@pytest.mark.covers("CQV-24")
@pytest.mark.guest(HOT)
def test_a_device_that_comes_and_goes(guest: Guest, host: Host) -> None:
    device, counting = guest.devices[1], Counting(guest)
    # QEMU and the kernel keep some objects from the first use on; they are no leak.
    plug(guest, device)
    eject(guest, device)
    before = counting.take()

    plug(guest, device)
    there = counting.take()
    eject(guest, device)

    after = counting.take()
    assert there.objects[TraceEvent.ALLOC_VDEV] == before.objects[TraceEvent.ALLOC_VDEV] + 1
    came = dma_bufs(there) - dma_bufs(before)
    said = guest.qemu_messages().splitlines()
    left = unexplained(host.facts, after, before, said, plugs=2, plugged_dma_bufs=came)
    assert not left, "\n".join(left)


@pytest.mark.covers("CQV-24", "CQV-23")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.guest(HOT)
def test_a_device_may_come_more_often_than_there_are_stream_ids(
    guest: Guest, host: Host, silicon: Silicon
) -> None:
    """Hardware replaces so many StreamIDs for a guest. What was given back can be had again."""
    device, cmdqv = guest.devices[1], GuestCmdqv(guest)
    places = 1 << (cmdqv.read(Config.PARAM) >> SIDS_SHIFT & SIDS_MASK)
    for _ in range(places):
        plug(guest, device)
        eject(guest, device)
    plug(guest, device)
    before = silicon.count()
    cmdqv.carry_out(0, atc_inv(device.vsid), sync())
    issued = [words for _, _, *words in silicon.issued(before)]
    assert [words for words in issued if opcode(words[0]) == Opcode.ATC_INV] == [
        [*atc_inv(host.stream_id(device.host_bdf))]
    ]


@pytest.mark.covers("CQV-24", "CQV-11")
@pytest.mark.guest(WITH_CMDQV)
def test_a_restart(guest: Guest) -> None:
    counting = Counting(guest)
    # The firmware and the kernel of a restart do the same each time, but not as a first start does.
    restart(guest)
    before = counting.take()
    assert before.objects[TraceEvent.ALLOC_HW_QUEUE] == len(QUEUES)

    restart(guest)

    after = counting.take()
    assert enabled(GuestCmdqv(guest))
    assert after.objects == before.objects
    assert after.descriptors == before.descriptors
    assert guest.qemu_messages() == ""


@pytest.mark.covers("CQV-24", "CQV-20")
@pytest.mark.guest(WITH_CMDQV)
@pytest.mark.parametrize("lvcmdq", QUEUES)
def test_a_new_ring(guest: Guest, lvcmdq: int) -> None:
    """The queue is there once, whether it was freed and allocated anew or could not be freed, which
    is the known defect CQV-20 of the first queue. QEMU says so of that queue, and of no other."""
    cmdqv, ring, counting = GuestCmdqv(guest), new_ring(guest), Counting(guest)
    before = counting.take()

    cmdqv.set_up(lvcmdq, ring)

    after = counting.take()
    assert after.objects == before.objects
    assert after.descriptors == before.descriptors
    busy = [one for one in guest.qemu_messages().splitlines() if BUSY.explains(one)]
    assert len(busy) == after.stuck.total() <= (1 if lvcmdq == 0 else 0)
    if not busy:
        check_works(guest, lvcmdq)
