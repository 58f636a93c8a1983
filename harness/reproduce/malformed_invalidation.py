"""A guest gives its SMMU an invalidation with a bit that is RES0."""

from __future__ import annotations

from harness.errors import ProductError
from harness.faults.command_queue import carry_out
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import ANY
from harness.reproduce.show import Say, in_guest
from harness.smmu.commands import Command, Opcode
from harness.smmu.trace import TraceEvent

_RES0 = 1 << 8
_MALFORMED: Command = (Opcode.TLBI_NH_ASID | _RES0 | 1 << 48, 0)


def _show(guest: Guest, say: Say) -> bool:
    """Give the command, and look whether the host's kernel has passed it on."""
    queue, start = guest.event_queue(), guest.trace_size()
    say("the guest puts a TLBI_NH_ASID with bit 8 set, which is RES0, into its command queue:")
    say(f"  {_MALFORMED[0]:#018x} {_MALFORMED[1]:#018x}")
    carry_out(guest, queue, _MALFORMED)
    calls = guest.trace(start).named(TraceEvent.INVALIDATE_CACHE)
    if not calls.lines:
        raise ProductError("QEMU does not hand the command on, so that nothing can be said of it")
    say("the kernel should refuse it (IOMMU_HWPT_INVALIDATE): an SMMU may stop at it, and the host")
    say("and all guests share the command queue that it would be in")
    say(f"QEMU: {calls.lines[-1].name} {calls.lines[-1].text}")
    return calls.lines[-1].succeeded


SHOW = in_guest(GuestSpec(smmus=(SmmuSpec(devices=(ANY,), properties=(("cmdqv", "off"),)),)), _show)
