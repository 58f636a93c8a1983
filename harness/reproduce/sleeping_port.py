"""A device is plugged into a root port that sleeps."""

from __future__ import annotations

import contextlib

from harness.errors import LabError, ProductError
from harness.guest import description
from harness.guest.description import GuestSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import PLUG_SECONDS, eject, is_ready, plug, wait_ready
from harness.guest.root_port import RootPort
from harness.host.ability import ANY
from harness.reproduce.show import PLUGGED, Say, in_guest
from harness.waiting import wait_for


def _show(guest: Guest, say: Say) -> bool:
    """Plug a device into a root port that the guest's kernel has put to sleep."""
    device = guest.device(ANY)
    power = f"{RootPort(device.smmu, device.port).sysfs}/power"
    say("a device is plugged into a root port, and unplugged")
    plug(guest, device)
    eject(guest, device)
    try:
        wait_for(
            "the empty port to sleep",
            lambda: guest.run(f"cat {power}/runtime_status").text.strip() == "suspended",
            deadline=10,
        )
    except LabError:
        say("the guest's kernel leaves the port awake")
        return False
    say("the empty root port sleeps (runtime D3), and a device is plugged into it")
    guest.monitor.execute("device_add", **description.device_properties(device))
    say("the guest should find the device")
    # With the defect it never does, so the wait ends without it.
    with contextlib.suppress(ProductError):
        wait_ready(guest, device)
    found = is_ready(guest, device)
    say("it does" if found else f"it does not within {PLUG_SECONDS:.0f} s")
    return not found


SHOW = in_guest(GuestSpec(smmus=(PLUGGED,), ports_sleep=True), _show)
