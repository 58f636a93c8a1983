"""While a guest's event queue is off, its SMMU discards events, and raises no error for them."""

from __future__ import annotations

import pytest

from harness.boundary.client import Boundary, behind_boundary
from harness.devices.dma import UNMAPPED
from harness.devices.source import FaultSource
from harness.faults.switched_off import switched_off
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import WRITER
from harness.smmu.registers import CR0_EVENTQEN
from harness.smmu.trace import TraceEvent

GUEST = behind_boundary(GuestSpec(smmus=(SmmuSpec(devices=(WRITER,)),)))


@pytest.mark.known_defect("VEQ-19", symptom="^toggled=0x4, ")
@pytest.mark.covers("VEQ-19")
@pytest.mark.guest(GUEST)
def test_a_fault_while_the_queue_is_off_raises_no_error(
    guest: Guest, boundary: Boundary, writer: FaultSource
) -> None:
    """GERROR.EVENTQ_ABT_ERR tells of an aborted access to the queue (IHI 0070, section 6.3.17). An
    SMMU does not access a queue that is off (section 7.2)."""
    queue = guest.event_queue()
    mark, trace_start, log = queue.mark(), guest.trace_size(), boundary.mark()
    unseen, seen = writer.burst(1), writer.burst(1, 2 * UNMAPPED)

    with switched_off(guest, queue, CR0_EVENTQEN):
        writer.perform(unseen)
        boundary.wait_read(len(writer.expected(unseen)), log)
    writer.perform(seen)

    queue.expect(writer.expected(seen), mark)
    raised = guest.trace(trace_start).texts(TraceEvent.WRITE_GERROR)
    assert not raised, "\n".join(raised)
    assert guest.kernel_log("global error") == ""
