"""When a guest does not drain its event queue, the SMMU raises EVENTQ_ABT, the guest reports it,
and events arrive again once the queue is drained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from harness.devices.dma import UNMAPPED
from harness.devices.source import FaultSource
from harness.errors import ProductError
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import FLOODER
from harness.waiting import wait_for

#: The queue has 512 entries, few enough that the queues of the host hold all events.
GUEST = GuestSpec(smmus=(SmmuSpec(devices=(FLOODER,)),), cpus=2, small_queues=True)


@contextlib.contextmanager
def undrained(guest: Guest) -> Iterator[None]:
    """Keep the guest's driver from reading its queue while the body runs: a busy process of higher
    priority occupies the only CPU that the driver's interrupt thread may use. The interrupts
    themselves are handled."""
    guest.run("sysctl -w kernel.sched_rt_runtime_us=-1 >/dev/null")
    interrupt = guest.run("grep arm-smmu-v3-evtq /proc/interrupts").text.split(":")[0].strip()
    guest.run(f"echo 0 >/proc/irq/{interrupt}/smp_affinity_list")
    busy = "taskset 1 hil fifo 99 sh -c ': >/tmp/busy; while :; do :; done'"
    hog = guest.run(f"{busy} >/dev/null 2>&1 & echo $!").text.strip()
    try:
        # Until the busy process has the CPU, the driver would read the first events.
        wait_for(
            "the busy process to have the CPU",
            lambda: guest.run("ls /tmp/busy", check=False).status == 0,
            deadline=10,
        )
        yield
    finally:
        guest.run(f"kill {hog}")


@pytest.mark.covers("VEQ-14")
@pytest.mark.needs("small-queues")
@pytest.mark.guest(GUEST)
def test_full_queue_aborts_and_recovers(guest: Guest, flooder: FaultSource) -> None:
    queue = guest.event_queue()
    geometry = queue.geometry()
    filling = flooder.burst(geometry.entries)
    mark = queue.mark()

    with undrained(guest):
        flooder.perform(filling)
        wait_for(
            "the queue to be full",
            lambda: geometry.full(queue.prod, queue.cons),
            deadline=20,
            error=ProductError,
            last_seen=lambda: f"PROD {queue.prod:#x}, CONS {queue.cons:#x}",
        )
        assert guest.kernel_log("global error") == ""

        flooder.perform(flooder.burst(1, 2 * UNMAPPED))
        wait_for(
            "the guest to report the aborted write",
            lambda: guest.kernel_log("EVTQ write aborted"),
            deadline=20,
            error=ProductError,
        )
        assert "unexpected global error reported (0x00000004)" in guest.kernel_log("global error")
        assert geometry.full(queue.prod, queue.cons)
        queue.expect(flooder.expected(filling), mark)

    wait_for(
        "the guest to drain its queue",
        lambda: geometry.index(queue.prod) == geometry.index(queue.cons),
        deadline=20,
        error=ProductError,
        last_seen=lambda: f"PROD {queue.prod:#x}, CONS {queue.cons:#x}",
    )
    mark = queue.mark()
    again = flooder.burst(1, 3 * UNMAPPED)
    flooder.perform(again)
    queue.expect(flooder.expected(again), mark)
