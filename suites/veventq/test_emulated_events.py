"""Events that QEMU records itself and events from the host arrive in the same queue, none lost."""

from __future__ import annotations

import pytest

from harness.devices.dma import UNMAPPED
from harness.devices.source import FaultSource
from harness.faults.faulty_root_port import FaultyRootPort
from harness.fixtures.guests import FLOODED
from harness.guest.guest import Guest
from harness.guest.root_port import RootPort
from harness.smmu.access import Access
from harness.smmu.events import EventRecord, EventType

ROUNDS = 40


@pytest.mark.covers("VEQ-15")
@pytest.mark.guest(FLOODED)
def test_both_kinds_arrive_whole(guest: Guest, flooder: FaultSource) -> None:
    """QEMU emulates the root port. The port's interrupt goes to an unmapped address, so that QEMU
    records an event itself while a flood of events comes from the host."""
    port = RootPort(flooder.assigned.smmu, flooder.assigned.port)
    faulty = FaultyRootPort(guest, port)
    faulty.misdirect_interrupts(2 * UNMAPPED)
    flood = flooder.burst(16)
    queue = guest.event_queue()
    mark = queue.mark()

    scripts = [
        flooder.command(flood, times=10 * ROUNDS),
        faulty.interrupt_command(times=ROUNDS),
    ]
    guest.run(
        f"{' & '.join(f'{{ {script}; }} >/dev/null' for script in scripts)} & wait", timeout=60
    )

    own = EventRecord.stage1_fault(
        EventType.F_TRANSLATION, sid=port.sid, input_addr=2 * UNMAPPED, rnw=False
    )
    expected = [*flooder.expected(flood) * (10 * ROUNDS), *[Access(own)] * ROUNDS]
    queue.expect(expected, mark, interleaved=True, deadline=30)
