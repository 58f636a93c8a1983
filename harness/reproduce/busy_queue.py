"""The vEVENTQ of an SMMU that lost its last device stays."""

from __future__ import annotations

from harness.guest.description import GuestSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug
from harness.reproduce.show import PLUGGED, Say, in_guest

#: So many turns of four devices without an error make it unlikely that the defect is there. It was
#: seen once in fifty to two hundred devices.
BUSY_TURNS = 300


def _show(guest: Guest, say: Say) -> bool:
    """Plug and unplug the only devices of several SMMUs until QEMU says that it cannot free
    something."""
    say(f"{len(guest.devices)} devices, each the only one of its SMMU, are plugged and unplugged")
    say("until QEMU says that it cannot free what belongs to them")
    for turn in range(1, BUSY_TURNS + 1):
        plug(guest, *guest.devices)
        eject(guest, *guest.devices)
        said = guest.qemu_messages()
        if said:
            say(f"turn {turn}:\n{said}")
            return True
    say(f"QEMU said nothing in {BUSY_TURNS} turns")
    return False


SHOW = in_guest(GuestSpec(smmus=(PLUGGED,) * 4), _show)
