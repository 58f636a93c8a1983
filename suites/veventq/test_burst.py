"""Many events at once: every one arrives, in order, and QEMU's trace counts the same."""

from __future__ import annotations

import pytest

from harness.faults.gadgets import ACCESS_BYTES, Direction, Dma, IommuTestdev
from harness.guest.guest import Guest
from harness.smmu import trace
from harness.smmu.events import EventType

#: Nothing is mapped there: the guest's DMA domain of a device without driver is empty.
UNMAPPED = 0x4000_0000


@pytest.mark.covers("VEQ-11", "VEQ-17")
@pytest.mark.parametrize("count", [1, 16, 1024, 100_000])
def test_burst_arrives_whole_and_in_order(guest: Guest, testdev: IommuTestdev, count: int) -> None:
    dma = Dma(UNMAPPED, count * ACCESS_BYTES, Direction.WRITE)
    queue = guest.event_queue()
    mark, trace_start = queue.mark(), guest.trace_size()

    testdev.perform(dma)

    records = queue.wait_for(count, mark, deadline=30 + count / 1000)
    assert records == dma.expected(EventType.F_TRANSLATION, testdev.device.vsid)
    forwarded = trace.propagated(guest.trace(trace_start))
    assert forwarded == [trace.PropagatedEvent("F_TRANSLATION", testdev.device.vsid)] * count
