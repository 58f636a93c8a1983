"""A guest that does not drain its queue: the error is raised, said, and survived."""

from __future__ import annotations

import shlex

import pytest

from harness.errors import ProductError
from harness.faults.gadgets import ACCESS_BYTES, Direction, Dma, IommuTestdev
from harness.guest.guest import Guest
from harness.smmu import queue as registers
from harness.smmu.events import EventType
from harness.waiting import wait_for

FLOODED, OVER = "~FLOODED~", "~OVER~"
ROUND = 32 * 1024  # events; well below what the host's own queue holds


@pytest.mark.covers("VEQ-14")
@pytest.mark.timeout(180)
def test_full_queue_aborts_and_recovers(guest: Guest, testdev: IommuTestdev) -> None:
    queue = guest.event_queue()
    geometry = queue.geometry()
    flood = Dma(0x4000_0000, ROUND * ACCESS_BYTES, Direction.WRITE)
    rounds = geometry.entries // ROUND + 1
    # The guest's only CPU belongs to this process until the SMMU reports the error: the driver's
    # interrupt thread, of lower priority, drains nothing meanwhile. A second between the rounds,
    # or the flood would overflow the queue of the host's own SMMU first.
    round_by_round = " && ".join([shlex.join([*testdev.command(flood), "busy:1000"])] * rounds)
    abort = registers.GERROR_EVENTQ_ABT
    # Not the register: each further abort after the driver's acknowledgement toggles it again.
    until_error = "until grep -q ': *[1-9].*gerror' /proc/interrupts; do :; done"
    hog = f"{{ {round_by_round}; }} >/dev/null; echo {FLOODED}; {until_error}; echo {OVER}"
    guest.run("sysctl -w kernel.sched_rt_runtime_us=-1 >/dev/null")

    # Typed, not run: it speaks while it works.
    guest.console.send(f"hil fifo 99 sh -c {shlex.quote(hog)}")
    guest.console.wait_for("the end of the flood", FLOODED.encode(), 60)
    # The rest needs no CPU of the guest's; without it QEMU forwards faster.
    guest.monitor.execute("stop")
    wait_for(
        "the queue to be full and the error raised",
        lambda: queue.register(registers.GERROR) & abort != 0,
        deadline=90,
        error=ProductError,
        last_seen=lambda: f"PROD {queue.prod:#x}, CONS {queue.cons:#x}",
    )
    assert geometry.full(queue.prod, queue.cons)
    guest.monitor.execute("cont")
    guest.console.wait_for("the guest to see the error", OVER.encode(), 30)

    wait_for(
        "the guest to report the aborted write",
        lambda: guest.kernel_log("EVTQ write aborted"),
        deadline=20,
        error=ProductError,
    )
    assert "unexpected global error reported (0x00000004)" in guest.kernel_log("global error")
    wait_for(
        "the guest to drain its queue, and QEMU to have nothing left for it",
        lambda: geometry.index(queue.prod) == geometry.index(queue.cons),
        deadline=60,
        error=ProductError,
        last_seen=lambda: f"PROD {queue.prod:#x}, CONS {queue.cons:#x}",
    )
    _await_quiet(guest)
    mark = queue.mark()
    again = Dma(0x9000_0000, 16 * ACCESS_BYTES, Direction.WRITE)
    testdev.perform(again)
    queue.expect(again.expected(EventType.F_TRANSLATION, testdev.device.vsid), mark)


def _await_quiet(guest: Guest) -> None:
    """Until QEMU forwards no more of the flood."""
    sizes = [guest.trace_size()]

    def unchanged() -> bool:
        sizes.append(guest.trace_size())
        return sizes[-1] == sizes[-2]

    wait_for("QEMU to have forwarded the flood", unchanged, deadline=60, interval=0.5)
