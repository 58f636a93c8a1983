"""Measure what the boundary costs: records per second, and the delay that it adds.

The same guest runs with and without the boundary, in each round. A delay is the time from the
report of the SMMU's driver in the host's kernel to QEMU's trace line, by the host's clock.
"""

from __future__ import annotations

import re
import statistics
import sys

from benchmarks.chain import burst_rate
from benchmarks.runner.figure import Benchmark, Better, Figure, Samples
from benchmarks.runner.host import SILENT, own_host
from benchmarks.runner.program import alone
from harness.boundary.client import behind_boundary
from harness.devices import source
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest
from harness.host.ability import FLOODER, Ability
from harness.host.host import Host
from harness.host.probes import TRACING, vevents_reported

DIRECT_RATE = Figure("direct-rate", "records to a guest", "records/s", better=Better.LARGER)
RATE = Figure(
    "boundary-rate", "records to a guest behind the boundary", "records/s", better=Better.LARGER
)
SHARE = Figure(
    "boundary-share", "how much of the direct rate that is", "of 1", better=Better.LARGER
)
DIRECT_DELAY = Figure("direct-delay", "the way of a single record to QEMU: median", "ms")
DELAY = Figure("boundary-delay", "the same behind the boundary: median", "ms")
SLOWEST = Figure("boundary-delay-99", "the same: 99th percentile", "ms")
ADDED = Figure("boundary-adds", "how much the boundary adds to the median", "ms", compared=False)

GUEST = GuestSpec(smmus=(SmmuSpec(devices=(FLOODER,)),))
_BURST, _SINGLES = 50_000, 200


def measure(share: float) -> Samples:
    """Yield the figures of a guest, and of the same guest behind the boundary."""
    with own_host() as host:
        fleet = Fleet(host, SILENT)
        burst, singles = int(_BURST * share), max(20, int(_SINGLES * share))
        with fleet.guests([GUEST]) as (guest,):
            direct = single_delays(host, guest, singles)
            direct_rate = burst_rate(guest, burst)
        with fleet.guests([behind_boundary(GUEST)]) as (guest,):
            delays = single_delays(host, guest, singles)
            rate = burst_rate(guest, burst)
    yield DIRECT_RATE, direct_rate
    yield RATE, rate
    yield SHARE, rate / direct_rate
    yield DIRECT_DELAY, percentile(direct, 50) * 1e3
    yield DELAY, percentile(delays, 50) * 1e3
    yield SLOWEST, percentile(delays, 99) * 1e3
    yield ADDED, (percentile(delays, 50) - percentile(direct, 50)) * 1e3


def percentile(values: list[float], p: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[p - 1]


def single_delays(host: Host, guest: Guest, count: int) -> list[float]:
    """Return the seconds from the kernel's report of each event to QEMU's trace line. Events come
    one at a time."""
    flooder = source(guest, Ability.WRITE, Ability.FLOOD)
    paced = flooder.command(flooder.burst(1), times=count, pause_ms=10)
    # QEMU's trace has wall-clock time. CLOCK_TAI equals it unless the kernel was told of leap
    # seconds.
    host.connection.run(f"echo tai >{TRACING}/trace_clock")
    start = guest.trace_size()
    with vevents_reported(host.session):
        guest.run(f"{paced} >/dev/null", timeout=60)
        guest.wait_propagated(count, start)
        reported = [
            float(stamp)
            for stamp in re.findall(
                r"\s(\d+\.\d+): vevent:", host.connection.run(f"cat {TRACING}/trace").text
            )
        ]
    passed = [one.time for one in guest.trace(start) if one.name == "smmuv3_propagate_event"]
    assert len(reported) == len(passed) == count
    return [later - earlier for earlier, later in zip(reported, passed, strict=True) if later]


BENCHMARK = Benchmark(
    (DIRECT_RATE, RATE, SHARE, DIRECT_DELAY, DELAY, SLOWEST, ADDED), measure, seconds=60, lab=True
)

if __name__ == "__main__":
    sys.exit(alone(__file__))
