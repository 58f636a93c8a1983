"""What devices leave behind that were plugged and unplugged, and how much of it the known upstream
defects explain. That is counted: one more is not explained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.guest.census import STUCK, Census
from harness.host.host import Facts
from harness.report.defects import known_defect
from harness.smmu.trace import TraceEvent

DMA_BUF = known_defect("HOT-03", symptom="^descriptors: /dmabuf:")
BUSY = known_defect("VEQ-06", symptom=r"^\S+ \S+: Failed to free id: \d+ Device or resource busy$")
#: VEQ-06 was seen in one of fifty to two hundred unplugs. In one of so many it is another defect.
OFTEN = 10


def dma_bufs(census: Census) -> int:
    """Return how many dma-bufs QEMU has open."""
    return sum(n for name, n in census.descriptors.items() if name.startswith("/dmabuf:"))


def unexplained(
    facts: Facts,
    now: Census,
    before: Census,
    said: Sequence[str],
    *,
    plugs: int,
    plugged_dma_bufs: int,
) -> list[str]:
    """Return what grew from one count to another, and what QEMU has `said` meanwhile, a line each,
    without what the known defects of this host leave.

    HOT-03 leaves as many dma-bufs as came with the devices that were plugged, and no more. VEQ-06
    leaves vEVENTQs, with each of them its vIOMMU, and perhaps the stage 2 of that; QEMU says of
    each object that it is busy. That happens now and then: in one of ten of the `plugs` since the
    guest's start at most, or once. The IOAS stays, because
    another device of the guest does.
    """
    left = [*now.growth(before), *said]
    if DMA_BUF.defect.concerns(facts) and dma_bufs(now) - dma_bufs(before) <= plugged_dma_bufs:
        left = [one for one in left if not DMA_BUF.explains(one)]
    stuck = now.stuck - before.stuck
    busy = [one for one in said if BUSY.explains(one)]
    rare = now.stuck[TraceEvent.ALLOC_EVENTQ] <= max(1, plugs // OFTEN)
    explained = rare and _with_queues(stuck) and len(busy) == stuck.total()
    if BUSY.defect.concerns(facts) and explained:
        left = [one for one in left if one not in busy and not one.startswith(STUCK)]
    return left


def _with_queues(stuck: Counter[str]) -> bool:
    """Return whether these objects are vEVENTQs and what each keeps."""
    queues = stuck[TraceEvent.ALLOC_EVENTQ]
    kinds = (TraceEvent.ALLOC_EVENTQ, TraceEvent.ALLOC_VIOMMU, TraceEvent.ALLOC_HWPT)
    each = dict.fromkeys(map(str, kinds), queues)
    return stuck[TraceEvent.ALLOC_VIOMMU] == queues and not stuck - Counter(each)
