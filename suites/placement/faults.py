"""Check that the events of a device reach its guest."""

from __future__ import annotations

from harness.devices.dma import UNMAPPED
from harness.devices.source import FaultSource


def check_faults(one: FaultSource, iova: int = UNMAPPED) -> None:
    """Have a source fault, and check that its events reach the guest exactly."""
    queue = one.guest.event_queue(one.assigned.smmu)
    mark = queue.mark()
    dma = one.burst(min(16, one.longest // one.unit), iova)
    one.perform(dma)
    queue.expect(one.expected(dma), mark)
