"""Measure what the boundary costs: records per second, and the delay that it adds. `make bench`.

The same guest runs with and without the boundary, in turns, in one run. A delay is the time from
the report of the SMMU's driver in the host's kernel to QEMU's trace line, by the host's clock.
"""

from __future__ import annotations

import os
import re
import statistics
import time

from harness.artifacts.store import Store
from harness.boundary.client import behind_boundary
from harness.devices import source
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest
from harness.host.ability import FLOODER, Ability
from harness.host.host import Host
from harness.host.probes import TRACING, vevents_reported
from harness.lab.inventory import HostEntry, Virtual
from harness.lab.provide import provided
from harness.progress import Progress

DIRECT = GuestSpec(smmus=(SmmuSpec(devices=(FLOODER,)),))
WAYS = {"direct": DIRECT, "boundary": behind_boundary(DIRECT)}
BURST, SINGLES, TURNS = 50_000, 200, 3


def main() -> None:
    progress = Progress(enabled=False)
    entry = HostEntry(name=f"bench-{os.getpid()}", virtual=Virtual())
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    delays: dict[str, list[float]] = {way: [] for way in WAYS}
    with provided(entry, Store(), progress) as described, Host.open(described) as host:
        fleet = Fleet(host, progress)
        for _ in range(TURNS):
            for way, description in WAYS.items():
                with fleet.guests([description]) as (guest,):
                    delays[way] += single_delays(host, guest)
                    rates[way].append(burst_rate(guest))
    for way in WAYS:
        print(
            f"{way:9} {statistics.median(rates[way]):7.0f} records/s (n={TURNS} of {BURST})   "
            f"delay {milliseconds(delays[way], 50)} ms median, {milliseconds(delays[way], 99)} ms "
            f"99th percentile (n={len(delays[way])})"
        )
    share = statistics.median(rates["boundary"]) / statistics.median(rates["direct"])
    added = [percentile(delays["boundary"], p) - percentile(delays["direct"], p) for p in (50, 99)]
    print(
        f"the boundary passes {share:.2f} of the direct rate and adds "
        f"{added[0] * 1e3:.2f} ms median, {added[1] * 1e3:.2f} ms 99th percentile"
    )


def percentile(values: list[float], p: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[p - 1]


def milliseconds(values: list[float], p: int) -> str:
    return f"{percentile(values, p) * 1e3:.2f}"


def burst_rate(guest: Guest) -> float:
    """Return the records per second, from the start of the fault source to the last record in the
    guest's memory."""
    flooder, queue = source(guest, Ability.WRITE, Ability.FLOOD), guest.event_queue()
    dma = flooder.burst(BURST)
    mark, started = queue.mark(), time.monotonic()
    flooder.perform(dma)
    queue.wait_for(BURST, mark, deadline=120)
    elapsed = time.monotonic() - started
    queue.expect(flooder.expected(dma), mark)
    return BURST / elapsed


def single_delays(host: Host, guest: Guest) -> list[float]:
    """Return the seconds from the kernel's report of each event to QEMU's trace line. Events come
    one at a time."""
    flooder = source(guest, Ability.WRITE, Ability.FLOOD)
    paced = flooder.command(flooder.burst(1), times=SINGLES, pause_ms=10)
    # QEMU's trace has wall-clock time. CLOCK_TAI equals it unless the kernel was told of leap
    # seconds.
    host.connection.run(f"echo tai >{TRACING}/trace_clock")
    start = guest.trace_size()
    with vevents_reported(host.session):
        guest.run(f"{paced} >/dev/null", timeout=60)
        guest.wait_propagated(SINGLES, start)
        reported = [
            float(stamp)
            for stamp in re.findall(
                r"\s(\d+\.\d+): vevent:", host.connection.run(f"cat {TRACING}/trace").text
            )
        ]
    passed = [one.time for one in guest.trace(start) if one.name == "smmuv3_propagate_event"]
    assert len(reported) == len(passed) == SINGLES
    return [later - earlier for earlier, later in zip(reported, passed, strict=True) if later]


if __name__ == "__main__":
    main()
