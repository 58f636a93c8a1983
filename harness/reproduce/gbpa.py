"""GBPA is written while the SMMU is on."""

from __future__ import annotations

import contextlib

from harness.devices import source
from harness.devices.dma import Direction
from harness.errors import ProductError
from harness.faults.guest_tables import write_gbpa
from harness.guest.guest import Guest
from harness.host.ability import Ability
from harness.reproduce.show import PLAIN, Say, in_guest


def _show(guest: Guest, say: Say) -> bool:
    """Perform the same unmapped DMA before and after the guest writes GBPA."""
    queue, reader = guest.event_queue(), source(guest, Ability.READ)
    read = reader.burst(1, direction=Direction.READ)

    def faults() -> int:
        mark = queue.mark()
        reader.perform(read)
        # With the defect there is no event at all, so the wait ends without one.
        with contextlib.suppress(ProductError):
            queue.wait_for(1, mark, deadline=3)
        return queue.count_since(mark)

    say(f"the SMMU is enabled, and nothing is mapped for {reader}: {read} should raise 1 event")
    before = faults()
    say(f"it raises: {before}")
    if before != 1:
        raise ProductError(
            "the DMA does not raise 1 event even before GBPA is written, so that nothing can be "
            "said about the defect"
        )
    write_gbpa(guest, queue, 0)
    say("the guest writes GBPA: UPDATE without ABORT. GBPA has an effect only while SMMUEN is 0")
    say("the same DMA should raise 1 event again")
    found = faults()
    say(f"it raises: {found}")
    return found == 0


SHOW = in_guest(PLAIN, _show)
