"""All events of a burst arrive in order, and QEMU's trace has as many as the guest's queue."""

from __future__ import annotations

import itertools

import pytest

from harness.devices.dma import ACCESS_BYTES, UNMAPPED, Direction, Dma
from harness.devices.edu import Edu
from harness.devices.testdev import IommuTestdev
from harness.expectation import expect
from harness.guest.guest import Guest
from harness.smmu import trace
from harness.smmu.events import EventType


@pytest.mark.covers("VEQ-11", "VEQ-17")
@pytest.mark.parametrize("count", [1, 16, 1024, 100_000])
def test_burst_arrives_whole_and_in_order(guest: Guest, testdev: IommuTestdev, count: int) -> None:
    dma = Dma(UNMAPPED, count * ACCESS_BYTES, Direction.WRITE)
    queue = guest.event_queue()
    mark, trace_start = queue.mark(), guest.trace_size()

    testdev.perform(dma)

    vsid = testdev.vsid
    expected = dma.expected(EventType.F_TRANSLATION, vsid)
    deadline = 30 + count / 1000
    queue.expect(expected, mark, deadline=deadline)
    forwarded = guest.wait_propagated(count, trace_start, deadline=deadline)
    expect("QEMU's trace", forwarded, [trace.PropagatedEvent("F_TRANSLATION", vsid)] * count)


@pytest.mark.covers("VEQ-12")
def test_two_devices_interleave_and_lose_nothing(
    guest: Guest, edu: Edu, testdev: IommuTestdev
) -> None:
    rounds = {edu: 6, testdev: 40}
    dmas = {
        edu: Dma(UNMAPPED, 64, Direction.READ),
        testdev: Dma(2 * UNMAPPED, 16, Direction.WRITE),
    }
    queue = guest.event_queue()
    mark = queue.mark()

    # An edu takes 100 ms for a round and an iommu-testdev almost none. The testdev is started by a
    # separate command for each round, which spreads its rounds over those of the edu.
    slow = edu.command(dmas[edu], times=rounds[edu])
    quick = testdev.command(dmas[testdev])
    again = f"for i in $(seq {rounds[testdev]}); do {quick}; done"
    guest.run(f"{slow} & {again} >/dev/null & wait", timeout=60)

    total = sum(dmas[source].faults * rounds[source] for source in rounds)
    records = queue.wait_for(total, mark, deadline=30)
    for source in rounds:
        vsid = source.vsid
        expected = dmas[source].expected(EventType.F_TRANSLATION, vsid) * rounds[source]
        expect(f"events of {vsid:#x}", [r for r in records if r.sid == vsid], expected)
    assert len(records) == total
    changes = sum(one.sid != other.sid for one, other in itertools.pairwise(records))
    assert changes > 2, "the two devices' records stand one after the other, not interleaved"
