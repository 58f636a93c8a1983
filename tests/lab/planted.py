"""This suite has one failure of each kind, and tests that do not fail, for the test of reports."""

from __future__ import annotations

import pytest

from harness.devices.source import FaultSource
from harness.fixtures.guests import DEFAULT
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.host.host import Host
from harness.smmu.events import EventRecord, EventType

IOVA = 0x12_3456_0000


def check(guest: Guest, writer: FaultSource, *, missing: int = 0) -> None:
    """Have a source fault, and expect `missing` events more than come."""
    queue = guest.event_queue()
    mark = queue.mark()
    writer.perform(writer.burst(8, IOVA))
    queue.expect(writer.expected(writer.burst(8 + missing, IOVA)), mark, deadline=1)


@pytest.mark.covers("VEQ-07", "VEQ-17")
def test_right(guest: Guest, writer: FaultSource) -> None:
    """All events arrive, so the test passes."""
    check(guest, writer)


@pytest.mark.covers("VEQ-07")
def test_missing_event(guest: Guest, writer: FaultSource) -> None:
    """The product is to blame: one event is missing."""
    check(guest, writer, missing=1)


@pytest.mark.covers("VEQ-09")
def test_wrong_stream(guest: Guest, writer: FaultSource) -> None:
    """The product is to blame: the event has a StreamID that is not the expected one."""
    queue = guest.event_queue()
    mark = queue.mark()
    writer.perform(writer.burst(1, IOVA))
    wrong = EventRecord.stage1_fault(EventType.F_TRANSLATION, sid=0x900, input_addr=IOVA, rnw=False)
    queue.expect([wrong], mark, deadline=1)


@pytest.mark.covers("VEQ-01")
@pytest.mark.guest(DEFAULT)
def test_guest_of_its_own(fleet: Fleet) -> None:
    """The product is to blame, in a guest that the test itself asked the fleet for."""
    with fleet.guests([DEFAULT], Freshness.COLD) as (guest,):
        assert guest.run("cat /proc/version").text == "right"


@pytest.mark.covers("VEQ-11")
def test_host_without_a_tool(host: Host) -> None:
    """The lab is to blame: a tool is missing on the host."""
    host.connection.run(["no-such-tool"])


@pytest.mark.covers("VEQ-12")
def test_mistake_of_ours() -> None:
    """The harness is to blame: the exception is none that it raises on purpose."""
    assert {"there": 1}["missing"]


# By its version, the QEMU of the lab has both of these defects. The tests do not provoke them.
@pytest.mark.known_defect("LOSS-05", symptom="== 'right'")
@pytest.mark.covers("VEQ-08")
def test_known(host: Host) -> None:
    """A known defect is present, so the test fails as expected."""
    assert host.facts.qemu == "right"


@pytest.mark.known_defect("LOSS-07", symptom="assert")
@pytest.mark.covers("VEQ-10")
def test_fixed(host: Host) -> None:
    """A known defect no longer shows, so the test fails although it passes."""
    assert host.facts.qemu
