"""On a real host the boundary loses no record, and its end is reported."""

from __future__ import annotations

import dataclasses
import signal

import pytest

from harness.boundary.account import Account
from harness.boundary.client import CMDQV, SMMUV3, Boundary, merging
from harness.boundary.on_host import rules
from harness.devices.source import FaultSource
from harness.errors import HarnessError, LabError
from harness.fixtures.guests import BEHIND_BOUNDARY, DEFAULT
from harness.guest.description import BoundarySpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest, QemuRefusedError
from harness.host.host import Host
from harness.host.probes import vevents_reported
from harness.report import evidence
from harness.waiting import wait_for

pytestmark = pytest.mark.lab


@pytest.mark.long
@pytest.mark.guest(BEHIND_BOUNDARY)
def test_a_hundred_thousand_records_pass_whole_and_in_order(
    account: Account, boundary: Boundary
) -> None:
    count = 100_000
    sent = account.fault(count)

    assert account.close() == sent
    assert account.reported() == []
    state = boundary.queue()
    assert (state.received, state.delivered, state.waiting) == (count + 1, count + 1, 0)


@pytest.mark.needs("kprobe")
@pytest.mark.guest(merging(DEFAULT))
def test_equal_events_that_came_together_reach_the_guest_once(
    guest: Guest, host: Host, flooder: FaultSource, account: Account, boundary: Boundary
) -> None:
    dma = flooder.burst(1)
    with vevents_reported(host.session) as seen:
        guest.session.signal(guest.name, signal.SIGSTOP)  # QEMU itself runs on
        try:
            for _ in range(3):
                flooder.perform(dma)
            wait_for("the kernel to have all events", lambda: len(seen()) == 3, deadline=10)
        finally:
            guest.session.signal(guest.name, signal.SIGCONT)

    assert account.close() == [access.record for access in flooder.expected(dma)]
    assert account.reported() == []
    merged = [one for one in boundary.passages() if one.did == rules.Merge.name]
    assert [(len(one.got), len(one.sent)) for one in merged] == [(1, 0), (1, 0)]


@pytest.mark.guest(BEHIND_BOUNDARY)
def test_rules_for_queues_that_are_not_there_are_refused(boundary: Boundary) -> None:
    with pytest.raises(HarnessError, match="there is no queue TEGRA241_CMDQV 0 now"):
        boundary.apply(rules.Drop(), queue=CMDQV)
    with pytest.raises(HarnessError, match="has 1 SMMUs"):
        boundary.apply(rules.Drop(), queue=SMMUV3._replace(slot=1))
    with pytest.raises(HarnessError, match="nothing is held"):
        boundary.release()
    assert boundary.queue().left == ()


@pytest.mark.guest(BEHIND_BOUNDARY)
def test_qemu_ends_with_its_boundary_and_the_report_says_so(
    guest: Guest, boundary: Boundary, fleet: Fleet
) -> None:
    fleet.spoil()
    qemu = guest.qemu_pid()
    guest.session.signal(guest.name, 9)

    with pytest.raises(LabError, match="boundary of guest guest0 ended with status -9, and QEMU"):
        boundary.queues()
    gone = ["test", "!", "-e", f"/proc/{qemu}/fd/0"]
    run = fleet.host.connection.run
    wait_for("QEMU to be gone", lambda: run(gone, check=False).status == 0, deadline=10)
    said = {one.name: one.text for one in evidence.collect(fleet.host, [guest])}
    assert "ended with status -9" in said["guest0: process"]
    assert "VEVENTQ_ALLOC" in said["guest0: boundary"]


@pytest.mark.guest(DEFAULT)
def test_a_host_that_cannot_is_the_labs_fault(fleet: Fleet) -> None:
    unfit = BoundarySpec("tests.lab.refusing.unfit")
    guest = dataclasses.replace(DEFAULT, boundary=unfit)
    with pytest.raises(
        LabError, match=r"cannot be started on .*: boundary: this kernel is too old"
    ):
        with fleet.guests([guest], Freshness.COLD):
            pass


@pytest.mark.guest(DEFAULT)
def test_a_qemu_that_is_long_in_ending_is_heard(fleet: Fleet) -> None:
    slow = BoundarySpec("tests.lab.refusing.slow")
    guest = dataclasses.replace(DEFAULT, boundary=slow)
    with pytest.raises(QemuRefusedError, match=r"status 1 .*\nqemu: no"):
        with fleet.guests([guest], Freshness.COLD):
            pass
