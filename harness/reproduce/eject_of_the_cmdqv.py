"""A guest powers off the slot of the device that brought its CMDQV."""

from __future__ import annotations

import shlex

from harness.errors import HilError
from harness.faults.slot_power import power_off
from harness.guest.death import QemuDiedError
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.host.ability import ANY
from harness.reproduce.show import Say

_GUEST = GuestSpec(smmus=(SmmuSpec(devices=(ANY,), properties=(("cmdqv", "on"),)),))


def _show(fleet: Fleet, say: Say) -> bool:
    """Power the slot off, and reset the machine, which QEMU should survive."""
    with fleet.guests([_GUEST]) as (guest,):
        say(f"$ {shlex.join(guest.command_line())}\n")
        device = guest.device(ANY)
        try:
            say(f"the guest powers the slot of {device.id} off, its only device")
            power_off(guest, device)
            say("system_reset: the guest should boot")
            guest.monitor.execute("system_reset")
            guest.wait_ready()
        except HilError as problem:
            try:
                fleet.check(problem)
            except QemuDiedError as death:
                say(death.message)
                return True
            raise
        said = guest.qemu_messages()
        say(f"it does, and QEMU says:\n{said or 'nothing'}")
        return "Failed to free id" in said


SHOW = _show
