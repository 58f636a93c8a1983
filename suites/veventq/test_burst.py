"""All events of a burst arrive in order, and QEMU's trace has as many as the guest's queue."""

from __future__ import annotations

import itertools

import pytest

from harness.devices.dma import UNMAPPED, Direction
from harness.devices.source import FaultSource
from harness.expectation import expect
from harness.fixtures.guests import FLOODED
from harness.guest.guest import Guest
from harness.smmu import trace


@pytest.mark.covers("VEQ-11", "VEQ-17")
@pytest.mark.guest(FLOODED)
@pytest.mark.parametrize("count", [1, 16, 1024, 100_000])
def test_burst_arrives_whole_and_in_order(guest: Guest, flooder: FaultSource, count: int) -> None:
    dma = flooder.burst(count)
    queue = guest.event_queue()
    mark, trace_start = queue.mark(), guest.trace_size()

    flooder.perform(dma)

    deadline = 30 + count / 1000
    records = queue.expect(flooder.expected(dma), mark, deadline=deadline)
    forwarded = guest.wait_propagated(len(records), trace_start, deadline=deadline)
    named = trace.PropagatedEvent("F_TRANSLATION", flooder.vsid)
    expect("QEMU's trace", forwarded, [named] * len(records))


@pytest.mark.covers("VEQ-12")
def test_two_devices_interleave_and_lose_nothing(
    guest: Guest, reader: FaultSource, flooder: FaultSource
) -> None:
    most = reader.longest // reader.unit
    reads = reader.burst(min(16, most), direction=Direction.READ)
    writes = flooder.burst(4, 2 * UNMAPPED)
    queue = guest.event_queue()
    mark = queue.mark()

    # How long the reads take is the device's: a drive is reset for each of them, which may take a
    # second. So the other device goes on until they are done.
    slow = reader.command(reads, times=6, pause_ms=150)
    quick = flooder.command(writes, times=4, pause_ms=25)
    turns = guest.run(
        f"{{ {slow}; echo >/tmp/read; }} >/dev/null 2>&1 & "
        f"n=0; until [ -e /tmp/read ]; do {quick} >/dev/null || exit; n=$((n + 1)); done; echo $n",
        timeout=120,
    )

    expected = reader.expected(reads) * 6 + flooder.expected(writes) * 4 * int(turns.text)
    records = queue.expect(expected, mark, interleaved=True, deadline=30)
    changes = sum(one.sid != other.sid for one, other in itertools.pairwise(records))
    assert changes > 2, "the two devices' records stand one after the other, not interleaved"
