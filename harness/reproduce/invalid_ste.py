"""A device performs DMA with a stream table entry that is not valid."""

from __future__ import annotations

import contextlib

from harness.devices import source
from harness.errors import ProductError
from harness.faults.command_queue import carry_out
from harness.faults.guest_tables import GuestTables
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import PROBE, Ability
from harness.reproduce.show import Say, in_guest
from harness.smmu.commands import cfgi_ste
from harness.smmu.events import EventType


def _show(guest: Guest, say: Say) -> bool:
    """Clear STE.V, invalidate the entry, and perform a DMA."""
    queue = guest.event_queue()
    probe = source(guest, Ability.REACH).in_kernels_domain(0)
    tables = GuestTables(guest, queue, probe.vsid)
    say(f"the guest clears V in the stream table entry of {probe}, and issues CMD_CFGI_STE")
    tables.invalidate_stream_table_entry()
    carry_out(guest, queue, cfgi_ste(probe.vsid))
    mark = queue.mark()
    say("the device performs a DMA, which should raise C_BAD_STE")
    probe.reaches()
    # With the defect there is no event at all, so the wait ends without one.
    with contextlib.suppress(ProductError):
        queue.wait_for(1, mark, deadline=3)
    found = {record.name for record in queue.since(mark)}
    say(f"it raises: {', '.join(sorted(found)) or 'nothing'}")
    return found != {EventType.C_BAD_STE.name}


SHOW = in_guest(GuestSpec(smmus=(SmmuSpec(devices=(PROBE,)),)), _show)
