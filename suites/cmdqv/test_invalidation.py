"""The SMMU no longer uses a translation once the guest's command to invalidate it completed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fixtures.guests import with_cmdqv
from harness.devices.dma import Direction
from harness.devices.source import FaultSource
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.faults.guest_tables import GuestTables
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.ability import PROBE
from harness.host.host import Silicon
from harness.smmu.commands import sync, tlbi_nh_asid

QUEUE = 1

pytestmark = [
    pytest.mark.needs("cmdqv"),
    pytest.mark.guest(with_cmdqv(PROBE), freshness=Freshness.SHARED),
]


def read_after_unmap(guest: Guest, probe: FaultSource, *, faults: bool) -> None:
    """Map a window, use it, remove and invalidate it, and use it again: all accesses must fault
    then if `faults` is true, and none otherwise."""
    queue = guest.event_queue()
    tables, cmdqv = GuestTables(guest, queue, probe.vsid), GuestCmdqv(guest)
    read = probe.burst(16, GuestTables.MAPPED.iova, Direction.READ)
    tables.install_windows()
    mark = queue.mark()
    probe.perform(read)
    assert queue.count_since(mark) == 0, "the window was not there"
    tables.remove_windows()
    cmdqv.carry_out(QUEUE, tlbi_nh_asid(tables.asid), sync())

    probe.perform(read)
    # Events arrive in order: every fault of the DMA above arrives before the fault of this one.
    beyond = probe.burst(1, GuestTables.UNMAPPED.iova + (1 << 38), Direction.READ)
    probe.perform(beyond)
    queue.expect([*(probe.expected(read) if faults else []), *probe.expected(beyond)], mark)


@pytest.fixture
def uninvalidated(silicon: Silicon) -> Iterator[None]:
    """Have the silicon model accept guests' commands without carrying them out."""
    silicon.invalidate(False)
    yield
    silicon.invalidate(True)


@pytest.mark.covers("CQV-04")
@pytest.mark.parametrize("turn", range(3))
def test_no_stale_translation_is_used(guest: Guest, probe: FaultSource, turn: int) -> None:
    read_after_unmap(guest, probe, faults=True)


@pytest.mark.covers("CQV-04")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.usefixtures("uninvalidated")
def test_a_stale_translation_is_used_if_commands_do_nothing(
    guest: Guest, probe: FaultSource
) -> None:
    """The control of the test above: it would see a stale translation if there were one."""
    read_after_unmap(guest, probe, faults=False)
