"""A device is unplugged while nothing can be attached to it."""

from __future__ import annotations

import errno

from harness.boundary.client import Boundary, behind_boundary
from harness.boundary.on_host.rules import Call, FailCall
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug
from harness.host.ability import ANY
from harness.reproduce.show import Say, in_guest


def _show(guest: Guest, say: Say) -> bool:
    """Unplug a device whose attaches fail, and read what QEMU says."""
    boundary, device = Boundary(guest), guest.devices[1]
    say("a device is plugged, and the guest's kernel makes it translate")
    plug(guest, device)
    say("from now on VFIO_DEVICE_ATTACH_IOMMUFD_PT fails with ENOMEM; the device is unplugged")
    boundary.apply(FailCall(call=Call.ATTACH_PT, errno=errno.ENOMEM, count=1000))
    eject(guest, device)
    boundary.apply()
    said = guest.qemu_messages()
    say("QEMU should say that it could not attach the default page table, and free all others")
    say(f"QEMU says:\n{said}")
    return "Failed to free id" in said


SHOW = in_guest(
    behind_boundary(
        GuestSpec(smmus=(SmmuSpec(devices=(ANY,), hot=(ANY,), properties=(("cmdqv", "off"),)),))
    ),
    _show,
)
