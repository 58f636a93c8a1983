"""Measure boot, restore, burst and memory, and compare them with limits. `make bench`.

Figures are medians of several rounds. The machines are noisy, so compare figures of one run only.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from harness.artifacts.store import Store
from harness.devices import source
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.host.ability import FLOODER, READER, Ability
from harness.host.connection import Connection
from harness.host.host import Host
from harness.lab.inventory import HostEntry, Virtual
from harness.lab.provide import describe_virtual, machine
from harness.progress import Progress

GUEST = GuestSpec(smmus=(SmmuSpec(devices=(READER, FLOODER)),))
BURST = 100_000


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    started = time.monotonic()
    action()
    return time.monotonic() - started


def row(what: str, values: list[float], unit: str, limit: float) -> None:
    """Print the median of the values beside its limit."""
    middle = statistics.median(values)
    verdict = "ok" if middle <= limit else "OVER"
    spread = f"{min(values):.2f} to {max(values):.2f}"
    print(
        f"{what:44} {middle:8.2f} {unit}  ({spread}, n={len(values)})  limit {limit:g}  {verdict}"
    )


def main() -> None:
    entry = HostEntry(name="bench", virtual=Virtual())
    progress = Progress(enabled=False)
    vm = machine(entry, Store(), progress)
    assert vm is not None
    vm.build()

    def to_ssh() -> None:
        running = vm.up()
        with Connection.to(describe_virtual(entry, vm, running).target) as link:
            link.run("true")

    boots = []
    for _ in range(3):
        vm.down()
        boots.append(timed(to_ssh))
    row("host to SSH", boots, "s", 5)
    try:
        running = vm.running()
        assert running is not None
        with Host.open(describe_virtual(entry, vm, running)) as host:
            measure_guests(Fleet(host, progress))
            now = vm.running()  # it was restored since, so it is another process
            assert now is not None
            row("memory of the virtual lab, peak", [peak_gib(now.process.pid)], "GiB", 4)
    finally:
        vm.down()


def peak_gib(pid: int) -> float:
    """Return the largest resident set of a process so far, in GiB (VmHWM of proc(5), in kB)."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = int(status.split("VmHWM:")[1].split()[0])
    return kilobytes / (1 << 20)


def measure_guests(fleet: Fleet) -> None:
    cold = []
    for _ in range(3):
        with fleet.guests([GUEST], Freshness.COLD) as (guest,):
            cold.append(guest.identity.boot_seconds)
    row("guest to prompt, cold", cold, "s", 12)
    with fleet.guests([GUEST]):
        pass  # saves the snapshot
    restored = []
    for _ in range(7):
        started = time.monotonic()
        with fleet.guests([GUEST]) as (guest,):
            restored.append(time.monotonic() - started)
    row("test on a restored guest starts", restored, "s", 1.5)
    with fleet.guests([GUEST]) as (guest,):
        flooder, queue = source(guest, Ability.WRITE, Ability.FLOOD), guest.event_queue()
        mark, dma = queue.mark(), flooder.burst(BURST)
        started = time.monotonic()
        flooder.perform(dma)
        queue.wait_for(BURST, mark, deadline=120)
        elapsed = time.monotonic() - started
        queue.expect(flooder.expected(dma), mark)
    print(f"{f'burst of {BURST}, exact and in order':44} {BURST / elapsed:8.0f} events/s")


if __name__ == "__main__":
    main()
