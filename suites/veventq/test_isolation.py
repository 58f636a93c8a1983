"""An event reaches only the SMMU, and only the guest, that its device belongs to."""

from __future__ import annotations

import pytest

from harness.devices import fault_source
from harness.devices.dma import ACCESS_BYTES, UNMAPPED, Direction, Dma
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.event_queue import EventQueue
from harness.guest.guest import Guest
from harness.smmu.events import EventType

EDU = SmmuSpec(devices=("edu",))
FAULTS = 64


def check_isolation(places: list[tuple[Guest, int]]) -> None:
    """Have the device of each place fault in turn, and check that each queue gets exactly its own
    events. Each place has a different number of faults, so that an event in the wrong queue shows,
    also if it comes late."""
    queues: list[EventQueue] = [guest.event_queue(smmu) for guest, smmu in places]
    marks = [queue.mark() for queue in queues]
    for turn, (guest, smmu) in enumerate(places):
        device = fault_source(guest, "edu", smmu)
        dma = Dma(UNMAPPED * (turn + 1), FAULTS * (turn + 1) * ACCESS_BYTES, Direction.WRITE)

        device.perform(dma)

        expected = dma.expected(EventType.F_TRANSLATION, device.vsid)
        queues[turn].expect(expected, marks[turn])
    counts = [queue.count_since(mark) for queue, mark in zip(queues, marks, strict=True)]
    own = [FAULTS * (turn + 1) for turn in range(len(places))]
    assert counts == own, "an event crossed over"


@pytest.mark.covers("VEQ-13")
@pytest.mark.guest(GuestSpec(smmus=(EDU, EDU)))
def test_two_smmus_in_one_guest(guest: Guest) -> None:
    check_isolation([(guest, 0), (guest, 1)])


@pytest.mark.covers("VEQ-13")
@pytest.mark.guest(GuestSpec(smmus=(EDU,)), GuestSpec(smmus=(EDU,)))
def test_two_guests_on_one_host(guests: list[Guest]) -> None:
    check_isolation([(guest, 0) for guest in guests])
