"""A device faults while the guest's event queue is off."""

from __future__ import annotations

import contextlib

from harness.devices import source
from harness.devices.dma import Direction
from harness.errors import ProductError
from harness.faults.switched_off import switched_off
from harness.guest.guest import Guest
from harness.host.ability import Ability
from harness.reproduce.show import PLAIN, Say, in_guest
from harness.smmu.registers import CR0_EVENTQEN
from harness.smmu.trace import TraceEvent


def _show(guest: Guest, say: Say) -> bool:
    """Perform an unmapped DMA between two writes of CR0."""
    queue, reader = guest.event_queue(), source(guest, Ability.READ)
    read = reader.burst(1, direction=Direction.READ)
    start = guest.trace_size()
    say("the guest clears CR0.EVENTQEN")
    with switched_off(guest, queue, CR0_EVENTQEN):
        say(f"{reader}: {read}, which faults")
        reader.perform(read)
        # A QEMU without the defect may forward nothing, so the wait may end without a line.
        with contextlib.suppress(ProductError):
            guest.wait_propagated(1, start, deadline=3)
    say("the guest sets CR0.EVENTQEN")
    say("no error should be raised: an SMMU does not access a queue that is off")
    raised = guest.trace(start).texts(TraceEvent.WRITE_GERROR)
    say(f"GERROR is written: {'; '.join(raised) or 'never'}")
    for line in guest.kernel_log("EVTQ write aborted").splitlines():
        say(f"the guest's kernel says: {line}")
    return bool(raised)


SHOW = in_guest(PLAIN, _show)
