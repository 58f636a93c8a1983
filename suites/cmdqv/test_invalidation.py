"""The SMMU no longer uses a translation once the guest's command to invalidate it completed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.devices.source import FaultSource
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.faults.guest_tables import GuestTables
from harness.fixtures.guests import with_cmdqv
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.ability import PROBE
from harness.host.host import Silicon
from harness.smmu.commands import sync, tlbi_nh_asid
from harness.smmu.events import EventType

QUEUE = 1
WINDOW = GuestTables.MAPPED
#: An IOVA that is never mapped.
LAST = GuestTables.UNMAPPED.iova + (1 << 38)

pytestmark = [
    pytest.mark.needs("cmdqv"),
    pytest.mark.guest(with_cmdqv(PROBE), freshness=Freshness.SHARED),
]


def reaches_after_unmap(guest: Guest, source: FaultSource) -> bool:
    """Map the guest's memory in a window, use it, remove and invalidate it; return whether the
    device still reaches memory there."""
    queue = guest.event_queue()
    tables, cmdqv = GuestTables(guest, queue, source.vsid), GuestCmdqv(guest)
    tables.install_windows()
    mark = queue.mark()
    assert source.reaches(WINDOW.offset), "the window was not there"
    assert queue.count_since(mark) == 0
    tables.remove_windows()
    cmdqv.carry_out(QUEUE, tlbi_nh_asid(tables.asid), sync())
    return source.reaches(WINDOW.offset)


@pytest.fixture
def source(probe: FaultSource) -> FaultSource:
    """Return a source in the domain of the guest's kernel, whose tables these tests edit."""
    return probe.in_kernels_domain(WINDOW.offset)


@pytest.fixture
def uninvalidated(guest: Guest, silicon: Silicon) -> Iterator[None]:
    """Have the silicon model accept guests' commands without carrying them out, once there is the
    guest: a restored host has the model as it was."""
    silicon.invalidate(False)
    yield
    silicon.invalidate(True)


@pytest.mark.covers("CQV-04")
@pytest.mark.parametrize("turn", range(3))
def test_no_stale_translation_is_used(guest: Guest, source: FaultSource, turn: int) -> None:
    queue = guest.event_queue()
    mark = queue.mark()
    assert not reaches_after_unmap(guest, source)
    records = queue.wait_for(1, mark)
    assert {(one.type, one.sid) for one in records} == {(EventType.F_TRANSLATION, source.vsid)}
    assert all(one.input_addr in WINDOW.iovas for one in records)


@pytest.mark.covers("CQV-04")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.usefixtures("uninvalidated")
def test_a_stale_translation_is_used_if_commands_do_nothing(
    guest: Guest, source: FaultSource
) -> None:
    """The control of the test above: it would see a stale translation if there were one."""
    queue = guest.event_queue()
    mark = queue.mark()
    assert reaches_after_unmap(guest, source)
    # Events keep their order: once the event of this DMA has arrived, an earlier one would have.
    last = source.burst(1, LAST)
    source.perform(last)
    queue.expect(source.expected(last), mark)
