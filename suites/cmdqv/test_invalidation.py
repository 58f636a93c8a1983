"""The SMMU no longer uses a translation once the guest's command to invalidate it completed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fixtures.guests import WITH_CMDQV
from harness.devices.dma import Direction, Dma
from harness.devices.edu import Edu
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.faults.guest_tables import GuestTables
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.host import Silicon
from harness.smmu.commands import sync, tlbi_nh_asid
from harness.smmu.events import EventType

READ = Dma(GuestTables.MAPPED.iova, 64, Direction.READ)
QUEUE = 1

pytestmark = [
    pytest.mark.needs("cmdqv"),
    pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED),
]


def read_after_unmap(guest: Guest, edu: Edu) -> int:
    """Map a window, use it, remove and invalidate it; return how many faults a DMA to it raises."""
    queue = guest.event_queue()
    tables, cmdqv = GuestTables(guest, queue, edu.vsid), GuestCmdqv(guest)
    tables.install_windows()
    mark = queue.mark()
    edu.perform(READ)
    assert queue.count_since(mark) == 0, "the window was not there"
    tables.remove_windows()
    cmdqv.carry_out(QUEUE, tlbi_nh_asid(tables.asid), sync())

    edu.perform(READ)
    # Events arrive in order: every fault of the DMA above arrives before the fault of this one.
    beyond = Dma(GuestTables.UNMAPPED.iova + (1 << 38), 4, Direction.READ)
    edu.perform(beyond)
    records = queue.wait_for(1, mark)
    last = beyond.expected(EventType.F_TRANSLATION, edu.vsid)
    while records[-1:] != last:
        records = queue.wait_for(len(records) + 1, mark)
    return len(records) - 1


@pytest.fixture
def uninvalidated(silicon: Silicon) -> Iterator[None]:
    """Have the silicon model accept guests' commands without carrying them out."""
    silicon.invalidate(False)
    yield
    silicon.invalidate(True)


@pytest.mark.covers("CQV-04")
@pytest.mark.parametrize("turn", range(3))
def test_no_stale_translation_is_used(guest: Guest, edu: Edu, turn: int) -> None:
    assert read_after_unmap(guest, edu) == READ.faults


@pytest.mark.covers("CQV-04")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.usefixtures("uninvalidated")
def test_a_stale_translation_is_used_if_commands_do_nothing(guest: Guest, edu: Edu) -> None:
    """The control of the test above: it would see a stale translation if there were one."""
    assert read_after_unmap(guest, edu) == 0
