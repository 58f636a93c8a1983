"""The sequence numbers wrap."""

from __future__ import annotations

from harness.reproduce.deliveries import read, record
from harness.smmu.vevents import INT_MAX

SHOW = read(
    (
        record(INT_MAX, f"a record numbered {INT_MAX}, the last number there is"),
        record(0, "a record numbered 0, the one after it"),
    ),
    (),
    events=2,
)
