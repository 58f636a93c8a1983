"""An event reaches only the SMMU, and only the guest, that its device belongs to."""

from __future__ import annotations

import pytest

from harness.devices import source
from harness.devices.dma import UNMAPPED
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import WRITER, Ability

ONE_WRITER = SmmuSpec(devices=(WRITER,))
FAULTS = 64


def check_isolation(places: list[tuple[Guest, int]]) -> None:
    """Have the device of each place fault in turn, and check that each queue gets exactly its own
    events. Each place has a different number of faults at other addresses, so that an event in the
    wrong queue shows, also if it comes late."""
    queues = [guest.event_queue(smmu) for guest, smmu in places]
    marks = [queue.mark() for queue in queues]
    expected = []
    for turn, (guest, smmu) in enumerate(places):
        writer = source(guest, Ability.WRITE, smmu=smmu)
        dma = writer.burst(FAULTS * (turn + 1), UNMAPPED * (turn + 1))

        writer.perform(dma)

        expected.append(writer.expected(dma))
        queues[turn].expect(expected[turn], marks[turn])
    # Again, now that all devices have had their turn: an event that crossed over is one too many.
    for queue, mark, own in zip(queues, marks, expected, strict=True):
        queue.expect(own, mark)


@pytest.mark.covers("VEQ-13")
@pytest.mark.guest(GuestSpec(smmus=(ONE_WRITER, ONE_WRITER)))
def test_two_smmus_in_one_guest(guest: Guest) -> None:
    check_isolation([(guest, 0), (guest, 1)])


@pytest.mark.covers("VEQ-13")
@pytest.mark.guest(GuestSpec(smmus=(ONE_WRITER,)), GuestSpec(smmus=(ONE_WRITER,)))
def test_two_guests_on_one_host(guests: list[Guest]) -> None:
    check_isolation([(guest, 0) for guest in guests])
