"""A read is short after the queue has overflowed."""

from __future__ import annotations

from harness.boundary.on_host.rules import Inject, LostHeader
from harness.reproduce.deliveries import Delivery, read, record
from harness.smmu.loss import Overflowed, ShortRead
from harness.smmu.vevents import QueueType, VEvent

_WHOLE = QueueType.ARM_SMMUV3.record_bytes


SHOW = read(
    (
        record(0, "a record numbered 0"),
        Delivery("a LOST_EVENTS header: 8 bytes", lambda _: LostHeader(1)),
        Delivery(
            f"the first 20 bytes of a record of {_WHOLE}",
            lambda event: Inject(VEvent(2, event).encode()[:20]),
        ),
        record(3, "a record numbered 3"),
    ),
    (Overflowed(), ShortRead(20, _WHOLE)),
    events=2,
)
