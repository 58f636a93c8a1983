"""Events that QEMU records itself and events from the host arrive in the same queue, none lost."""

from __future__ import annotations

import pytest

from harness.devices.dma import ACCESS_BYTES, UNMAPPED, Direction, Dma
from harness.devices.testdev import IommuTestdev
from harness.expectation import expect
from harness.faults.faulty_root_port import FaultyRootPort
from harness.guest.guest import Guest
from harness.guest.root_port import RootPort
from harness.smmu.events import EventType

ROUNDS = 40


@pytest.mark.covers("VEQ-15")
def test_both_kinds_arrive_whole(guest: Guest, testdev: IommuTestdev) -> None:
    """QEMU emulates the root port. The port's interrupt goes to an unmapped address, so that QEMU
    records an event itself while a flood of events comes from the host."""
    port = RootPort(smmu=0, port=1)
    faulty = FaultyRootPort(guest, port)
    faulty.misdirect_interrupts(2 * UNMAPPED)
    flood = Dma(UNMAPPED, 64, Direction.WRITE)
    queue = guest.event_queue()
    mark = queue.mark()

    scripts = [
        testdev.command(flood, times=10 * ROUNDS),
        faulty.interrupt_command(times=ROUNDS),
    ]
    guest.run(
        f"{' & '.join(f'{{ {script}; }} >/dev/null' for script in scripts)} & wait", timeout=60
    )

    own = Dma(2 * UNMAPPED, ACCESS_BYTES, Direction.WRITE)
    expected = {
        testdev.vsid: flood.expected(EventType.F_TRANSLATION, testdev.vsid) * (10 * ROUNDS),
        port.sid: own.expected(EventType.F_TRANSLATION, port.sid) * ROUNDS,
    }
    records = queue.wait_for(sum(map(len, expected.values())), mark, deadline=30)
    for sid, theirs in expected.items():
        expect(f"events of {sid:#x}", [one for one in records if one.sid == sid], theirs)
    assert len(records) == sum(map(len, expected.values()))
