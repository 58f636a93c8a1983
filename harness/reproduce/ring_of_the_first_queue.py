"""A guest's first command queue gets another ring while the second one is in use."""

from __future__ import annotations

from harness.faults.guest_cmdqv import GuestCmdqv
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.pages import pin_page
from harness.host.ability import ANY
from harness.reproduce.show import Say, in_guest
from harness.smmu.cmdqv import INIT_ERR, Page0
from harness.smmu.commands import COMMAND_BYTES
from harness.smmu.ring import Ring


def _show(guest: Guest, say: Say) -> bool:
    """Disable LVCMDQ0, write its BASE, and look whether QEMU could set it up."""
    cmdqv, ring = GuestCmdqv(guest), Ring(pin_page(guest), 8, COMMAND_BYTES)
    say("the guest's driver has set up both command queues, and is idle")
    say(f"the guest disables LVCMDQ0, writes BASE {ring.base:#x}, and enables it")
    cmdqv.set_up(0, ring)
    gerror = cmdqv.read(cmdqv.trapped(0, Page0.GERROR))
    say(f"GERROR of VCMDQ0 should be 0 in CMDQ_INIT_ERR; it is {gerror:#x}, and QEMU says:")
    say(guest.qemu_messages() or "nothing")
    return bool(gerror & INIT_ERR)


SHOW = in_guest(GuestSpec(smmus=(SmmuSpec(devices=(ANY,), properties=(("cmdqv", "on"),)),)), _show)
