"""The guest clears SMMUEN."""

from __future__ import annotations

from harness.devices import source
from harness.faults.switched_off import switched_off
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import PROBE, Ability
from harness.reproduce.show import Say, in_guest
from harness.smmu.registers import CR0_SMMUEN, GBPA, GBPA_ABORT


def _show(guest: Guest, say: Say) -> bool:
    """See whether a device reaches memory past its tables, before and after SMMUEN is cleared."""
    queue, probe = guest.event_queue(), source(guest, Ability.REACH)
    passes = not queue.register(GBPA) & GBPA_ABORT
    say(f"nothing is mapped for {probe}; by physical addresses it should reach no memory")
    say(f"it reaches memory: {_word(probe.reaches())}")
    say(f"GBPA.ABORT is {int(not passes)}; the guest clears CR0.SMMUEN")
    with switched_off(guest, queue, CR0_SMMUEN):
        found = probe.reaches()
    say(f"now it should reach memory: {_word(passes)}")
    say(f"it reaches memory: {_word(found)}")
    return found != passes


def _word(reaches: bool) -> str:
    return "yes" if reaches else "no"


SHOW = in_guest(GuestSpec(smmus=(SmmuSpec(devices=(PROBE,)),)), _show)
