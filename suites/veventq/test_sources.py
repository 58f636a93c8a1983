"""Every way in which a device performs DMA raises the events that its source predicts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.devices.dma import UNMAPPED, Dma
from harness.devices.source import FaultSource
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.ability import Ability
from harness.smmu.access import Access
from suites.veventq.sources import WAYS, directions, parameters, possible, smallest, source_by

#: The bytes of a DMA whose length is chosen: the first of these that the source can do. A drive
#: compares whole blocks, if it compares at all.
CHOSEN = (512, 4096, 8)
FLOOD = 100
#: Each DMA has addresses of its own, so that its records cannot pass for those of another.
STEP = 1 << 20


def dmas(source: FaultSource) -> Iterator[Dma]:
    """Yield the DMAs to try, each twice: the device must work again after a fault."""
    iova = UNMAPPED
    for _ in range(2):
        for direction in directions(type(source)):
            yield smallest(source, iova, direction)
            iova += STEP
        if Ability.EXACT_LENGTH in source.can:
            chosen = [Dma(iova, length, source.direction) for length in CHOSEN]
            yield next(dma for dma in chosen if possible(source, dma))
            iova += STEP
        if Ability.FLOOD in source.can:
            yield source.burst(FLOOD, iova)
            iova += STEP


@pytest.mark.covers("VEQ-18")
@pytest.mark.parametrize("way", [parameters(one, freshness=Freshness.SHARED) for one in WAYS])
def test_its_dma_raises_what_the_source_predicts(guest: Guest, way: type[FaultSource]) -> None:
    source, queue = source_by(guest, way), guest.event_queue()
    mark = queue.mark()
    expected: list[Access] = []
    for dma in dmas(source):
        source.perform(dma)
        expected += source.expected(dma)
        queue.expect(expected, mark)
