"""The SMMU no longer uses a translation once the guest's command to invalidate it completed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fixtures.guests import with_cmdqv
from harness.devices.source import FaultSource
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.faults.guest_tables import GuestTables
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.ability import PROBE
from harness.host.host import Silicon
from harness.smmu.commands import sync, tlbi_nh_asid
from harness.smmu.events import EventType

QUEUE = 1

pytestmark = [
    pytest.mark.needs("cmdqv"),
    pytest.mark.guest(with_cmdqv(PROBE), freshness=Freshness.SHARED),
]


def reaches_after_unmap(guest: Guest, probe: FaultSource) -> bool:
    """Map a window, use it, remove and invalidate it; return whether the device still reaches
    memory through it. If it does not, all that it tried must have raised a translation fault."""
    queue = guest.event_queue()
    tables, cmdqv = GuestTables(guest, queue, probe.vsid), GuestCmdqv(guest)
    offset = tables.MAPPED.iova - tables.MAPPED.output
    tables.install_windows()
    through = probe.in_kernels_domain(offset)
    mark = queue.mark()
    assert through.reaches(offset)
    assert queue.count_since(mark) == 0, "the window was not there"
    tables.remove_windows()
    cmdqv.carry_out(QUEUE, tlbi_nh_asid(tables.asid), sync())

    reached = through.reaches(offset)
    if not reached:
        records = queue.wait_for(1, mark)
        assert {record.type for record in records} == {EventType.F_TRANSLATION}
    return reached


@pytest.fixture
def uninvalidated(silicon: Silicon) -> Iterator[None]:
    """Have the silicon model accept guests' commands without carrying them out."""
    silicon.invalidate(False)
    yield
    silicon.invalidate(True)


@pytest.mark.covers("CQV-04")
@pytest.mark.parametrize("turn", range(3))
def test_no_stale_translation_is_used(guest: Guest, probe: FaultSource, turn: int) -> None:
    assert not reaches_after_unmap(guest, probe)


@pytest.mark.covers("CQV-04")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.usefixtures("uninvalidated")
def test_a_stale_translation_is_used_if_commands_do_nothing(
    guest: Guest, probe: FaultSource
) -> None:
    """The control of the test above: it would see a stale translation if there were one."""
    assert reaches_after_unmap(guest, probe)
