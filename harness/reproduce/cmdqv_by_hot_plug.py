"""A device brings a CMDQV before the guest starts."""

from __future__ import annotations

from harness import kernel_log
from harness.guest import description
from harness.guest.console import GuestCrashedError
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import ANY
from harness.reproduce.show import Say, in_guest


def _show(guest: Guest, say: Say) -> bool:
    """Plug a device into an SMMU with cmdqv=auto while the guest is paused at its start."""
    (device,) = guest.devices
    say("the guest is paused before its first instruction; its SMMU has cmdqv=auto and no device")
    properties = description.device_properties(device)
    say(f"device_add {properties}")
    guest.monitor.execute("device_add", **properties)
    say("cont: the guest should boot")
    guest.monitor.execute("cont")
    try:
        guest.wait_ready()
    except GuestCrashedError as crash:
        say(f"it crashes: {crash.message}")
        return True
    say("it boots")
    return False


SHOW = in_guest(
    GuestSpec(smmus=(SmmuSpec(hot=(ANY,), properties=(("cmdqv", "auto"),)),), paused=True),
    _show,
    kernel_report=kernel_log.CRASH,
)
