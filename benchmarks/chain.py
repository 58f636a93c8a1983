"""Measure boot, restore, burst and memory of the virtual lab."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.runner.call import seconds_of
from benchmarks.runner.figure import Benchmark, Better, Figure, Samples
from benchmarks.runner.host import SILENT, own_machine
from benchmarks.runner.program import alone
from harness.devices import source
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.host.ability import FLOODER, READER, Ability
from harness.host.connection import Connection
from harness.host.host import Host
from harness.lab.inventory import HostEntry
from harness.lab.provide import describe_virtual
from harness.virtual.machine import VirtualMachine

BOOT = Figure("boot", "a virtual host, from its start to a command over SSH", "s", limit=5)
COLD = Figure("cold", "a guest, from its start to its prompt", "s", limit=12)
RESTORED = Figure("restore", "a guest, restored for a test", "s", limit=1.5)
BURST = Figure(
    "burst",
    "a burst of 100000 events, exact and in order, from the fault source to the guest's memory",
    "events/s",
    better=Better.LARGER,
)
MEMORY = Figure("memory", "the largest resident set of the virtual host", "GiB", limit=4)
GUEST = GuestSpec(smmus=(SmmuSpec(devices=(READER, FLOODER)),))
_EVENTS, _RESTORES = 100_000, 3


def measure(share: float) -> Samples:
    """Yield each figure of a virtual host that boots, and has guests."""
    with own_machine() as (entry, vm):
        yield BOOT, seconds_of(lambda: to_ssh(entry, vm))
        running = vm.running()
        assert running is not None
        with Host.open(describe_virtual(entry, vm, running)) as host:
            yield from measure_guests(Fleet(host, SILENT), int(_EVENTS * share))
            now = vm.running()  # it was restored since, so it is another process
            assert now is not None
            yield MEMORY, peak_gib(now.process.pid)


def to_ssh(entry: HostEntry, vm: VirtualMachine) -> None:
    """Boot the host, and run a command there."""
    with Connection.to(describe_virtual(entry, vm, vm.up()).target) as link:
        link.run("true")


def peak_gib(pid: int) -> float:
    """Return the largest resident set of a process so far, in GiB (VmHWM of proc(5), in kB)."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = int(status.split("VmHWM:")[1].split()[0])
    return kilobytes / (1 << 20)


def measure_guests(fleet: Fleet, events: int) -> Samples:
    """Yield the figures of guests: booted, restored, and with a burst."""
    with fleet.guests([GUEST], Freshness.COLD) as (guest,):
        yield COLD, guest.identity.boot_seconds
    with fleet.guests([GUEST]):
        pass  # saves the snapshot
    for _ in range(_RESTORES):
        started = time.monotonic()
        with fleet.guests([GUEST]) as (guest,):
            yield RESTORED, time.monotonic() - started
    with fleet.guests([GUEST]) as (guest,):
        yield BURST, burst_rate(guest, events)


def burst_rate(guest: Guest, events: int) -> float:
    """Return the events per second, from the start of the fault source to the last record in the
    guest's memory. Raises ProductError if the records are not those that are expected."""
    flooder, queue = source(guest, Ability.WRITE, Ability.FLOOD), guest.event_queue()
    mark, dma = queue.mark(), flooder.burst(events)
    started = time.monotonic()
    flooder.perform(dma)
    queue.wait_for(events, mark, deadline=120)
    elapsed = time.monotonic() - started
    queue.expect(flooder.expected(dma), mark)
    return events / elapsed


BENCHMARK = Benchmark((BOOT, COLD, RESTORED, BURST, MEMORY), measure, seconds=60, lab=True)

if __name__ == "__main__":
    sys.exit(alone(__file__))
