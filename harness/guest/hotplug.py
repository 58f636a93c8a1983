"""Plugging a guest's assigned devices while it runs, through the root ports it booted with."""

from __future__ import annotations

from harness.errors import ProductError
from harness.guest import description
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.qmp import QmpRefusedError
from harness.steps import step
from harness.waiting import wait_for

#: The guest leaves five seconds for a second thought after the attention button.
UNPLUG_SECONDS = 30.0
PLUG_SECONDS = 30.0


def unplug(guest: Guest, device: AssignedDevice) -> None:
    """Ask the guest to give a device up, and wait until QEMU has let go of it.

    Raises QmpRefusedError when QEMU does not want to, ProductError when it does not happen.
    """
    with step(f"unplug {device.role} {device.id}"):
        guest.monitor.execute("device_del", id=device.id)
        wait_for(
            f"QEMU to let go of {device.id}",
            lambda: not is_plugged(guest, device),
            deadline=UNPLUG_SECONDS,
            error=ProductError,
            last_seen=lambda: f"the guest's own view: {_seen(guest, device)}",
        )


def plug(guest: Guest, device: AssignedDevice) -> None:
    """Plug a device in at the root port it has in the description, and wait until the guest has
    found it. Raises QmpRefusedError, ProductError."""
    with step(f"plug {device.role} {device.id}"):
        guest.monitor.execute("device_add", **description.device_properties(device))
        wait_for(
            f"the guest to find {device.id} at {device.guest_bdf}",
            lambda: _seen(guest, device),
            deadline=PLUG_SECONDS,
            error=ProductError,
        )


def is_plugged(guest: Guest, device: AssignedDevice) -> bool:
    """Whether QEMU has the device."""
    try:
        guest.monitor.execute("qom-get", path=f"/machine/peripheral/{device.id}", property="type")
    except QmpRefusedError:
        return False
    return True


def _seen(guest: Guest, device: AssignedDevice) -> bool:
    folder = f"/sys/bus/pci/devices/{device.guest_bdf}"
    return guest.run(f"test -e {folder}", check=False).status == 0
