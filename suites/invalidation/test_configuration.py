"""The SMMU no longer uses a stream table entry or a context descriptor of a guest once the guest's
command to invalidate it completed."""

from __future__ import annotations

import pytest

from harness.devices.source import FaultSource
from harness.faults.command_queue import carry_out
from harness.faults.guest_tables import GuestTables
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.ability import ANY, PROBE
from harness.smmu.commands import Command, cfgi_cd, cfgi_cd_all, cfgi_ste, cfgi_ste_range
from harness.smmu.events import EventType
from harness.smmu.trace import TraceEvent

WITHOUT_CMDQV = (("cmdqv", "off"),)
ONE = GuestSpec(smmus=(SmmuSpec(devices=(PROBE,), properties=WITHOUT_CMDQV),))
TWO = GuestSpec(smmus=(SmmuSpec(devices=(PROBE, ANY), properties=WITHOUT_CMDQV),))
#: The StreamIDs of the devices of TWO: they are multiples of 256.
FIRST, SECOND = 0x2100, 0x2200
OFFSET = GuestTables.MAPPED.offset
#: The log2 of the number of all StreamIDs.
ALL = 32


@pytest.mark.covers("INV-01")
@pytest.mark.guest(ONE)
@pytest.mark.parametrize(
    "command",
    [cfgi_cd(FIRST), cfgi_cd(FIRST, leaf=False), cfgi_cd_all(FIRST)],
    ids=["CFGI_CD-leaf", "CFGI_CD", "CFGI_CD_ALL"],
)
def test_a_context_descriptor(guest: Guest, probe: FaultSource, command: Command) -> None:
    queue = guest.event_queue()
    tables = GuestTables(guest, queue, probe.vsid)
    tables.install_windows()
    source = probe.in_kernels_domain(OFFSET)
    assert source.reaches(OFFSET)
    tables.break_context_descriptor()
    was_cached = source.reaches(OFFSET)
    carry_out(guest, queue, command)
    mark = queue.mark()
    assert not source.reaches(OFFSET)
    records = queue.wait_for(1, mark)
    assert {(one.type, one.sid) for one in records} == {(EventType.C_BAD_CD, FIRST)}
    if not was_cached:
        pytest.skip("the SMMU had forgotten it already: there was nothing to invalidate")


@pytest.mark.covers("INV-01")
@pytest.mark.guest(ONE)
@pytest.mark.parametrize(
    "command",
    [
        cfgi_ste(FIRST),
        cfgi_ste(FIRST, leaf=False),
        *(cfgi_ste_range(FIRST, log2) for log2 in (1, 8, ALL)),
    ],
    ids=["CFGI_STE-leaf", "CFGI_STE", "RANGE-of-2", "RANGE-of-256", "RANGE-of-all"],
)
def test_a_stream_table_entry(guest: Guest, probe: FaultSource, command: Command) -> None:
    queue = guest.event_queue()
    tables = GuestTables(guest, queue, probe.vsid)
    tables.install_windows()
    source = probe.in_kernels_domain(OFFSET)
    assert source.reaches(OFFSET)
    tables.abort_stream_table_entry()
    was_cached = source.reaches(OFFSET)
    mark = queue.mark()
    carry_out(guest, queue, command)
    assert not source.reaches(OFFSET)
    assert queue.count_since(mark) == 0, "an abort raises no event"
    if not was_cached:
        pytest.skip("the SMMU had forgotten it already: there was nothing to invalidate")


def installed(guest: Guest, *commands: Command) -> list[int]:
    """Have a guest's SMMU carry out commands; return the StreamIDs of the entries that were read
    again, in ascending order."""
    assert [device.vsid for device in guest.devices] == [FIRST, SECOND]
    start = guest.trace_size()
    carry_out(guest, guest.event_queue(), *commands)
    return sorted(guest.trace(start).numbers(TraceEvent.INSTALL_STE, "vSID"))


@pytest.mark.covers("INV-01")
@pytest.mark.guest(TWO, freshness=Freshness.SHARED)
@pytest.mark.parametrize(
    ("sid", "log2", "inside"),
    [
        pytest.param(FIRST, 1, {FIRST}, id="the-first-of-2"),
        pytest.param(FIRST + 1, 1, {FIRST}, id="2-named-by-the-last"),
        pytest.param(FIRST - 2, 1, set(), id="just-above-2"),
        pytest.param(FIRST + 2, 1, set(), id="just-below-2"),
        pytest.param(FIRST, 8, {FIRST}, id="the-first-of-256"),
        pytest.param(FIRST + 0xFF, 8, {FIRST}, id="256-named-by-the-last"),
        pytest.param(FIRST - 1, 8, set(), id="just-above-256"),
        pytest.param(SECOND, 8, {SECOND}, id="just-below-256"),
        pytest.param(FIRST, 9, {FIRST}, id="in-the-middle-of-512"),
        pytest.param(SECOND, 10, {FIRST, SECOND}, id="both-in-1024"),
        pytest.param(0, ALL, {FIRST, SECOND}, id="all"),
        pytest.param(0xFFFF_FFFF, ALL, {FIRST, SECOND}, id="all-named-by-the-last"),
    ],
)
def test_a_range_has_the_devices_that_are_in_it(
    guest: Guest, sid: int, log2: int, inside: set[int]
) -> None:
    """The entries of just these devices are read again. The StreamID of a device behind a root port
    is the first of 256, so that none is the last of a range."""
    assert installed(guest, cfgi_ste_range(sid, log2)) == sorted(inside)


@pytest.mark.covers("INV-01")
@pytest.mark.guest(TWO, freshness=Freshness.SHARED)
@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "all-levels"])
@pytest.mark.parametrize(
    ("sid", "inside"),
    [
        pytest.param(FIRST, [FIRST], id="the-first-device"),
        pytest.param(SECOND, [SECOND], id="the-last-device"),
        pytest.param(FIRST - 1, [], id="just-below"),
        pytest.param(FIRST + 1, [], id="just-above"),
        pytest.param(SECOND + 1, [], id="above-all"),
        pytest.param(0, [], id="no-device"),
    ],
)
def test_one_entry_is_one_devices(guest: Guest, sid: int, inside: list[int], leaf: bool) -> None:
    """A range has two entries at least, so that this is the command for one."""
    assert installed(guest, cfgi_ste(sid, leaf=leaf)) == inside


@pytest.mark.covers("INV-01")
@pytest.mark.guest(TWO, freshness=Freshness.SHARED)
@pytest.mark.parametrize("second", [cfgi_ste(SECOND), cfgi_ste_range(SECOND, 8)], ids=["1", "256"])
def test_entries_that_are_named_together_are_all_read(guest: Guest, second: Command) -> None:
    """Commands in one batch, each with the entries of another device, and of none between them."""
    nobody = cfgi_ste_range(FIRST - 2, 1)
    batch = (cfgi_ste(FIRST), nobody, second, nobody, cfgi_ste_range(FIRST, 1))
    assert installed(guest, *batch) == [FIRST, FIRST, SECOND]
