"""Plug and unplug a guest's assigned devices while it runs, at the root ports that it booted with.

The calls return when QEMU and the guest agree: the guest has the device and its driver, or neither
has the device any more. An unplug that fails raises one of

* UnplugBlockedError: QEMU refused, and did not ask the guest,
* UnplugRefusedError: QEMU asked the guest, and the guest keeps the device,
* ProductError: the guest gave the device up, and QEMU did not.

Native hot-plug: PCIe base specification, 6.7; docs/pcie.txt in QEMU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from harness.errors import ProductError
from harness.guest import description
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.root_port import PowerIndicator, RootPort, power_indicator, read_config
from harness.host import pci
from harness.qmp import Event, QmpRefusedError
from harness.steps import step
from harness.waiting import wait_for

#: After the attention button a guest waits five seconds before it acts: the request can be
#: cancelled in that time.
UNPLUG_SECONDS = 30.0
#: How long a guest may take to find a device and to have it ready. A drive may take some seconds to
#: become ready after a reset (CAP.TO).
PLUG_SECONDS = 30.0


class UnplugBlockedError(QmpRefusedError):
    """QEMU refused to unplug the device; `reason` is its text."""


class UnplugRefusedError(ProductError):
    """The guest keeps the device."""


def plug(guest: Guest, *devices: AssignedDevice) -> None:
    """Plug devices into the root ports that they have in the description, and wait until the guest
    has them ready and can give them up again, which it cannot while a slot's indicator blinks.

    All devices are plugged before the wait. Raises QmpRefusedError, ProductError.
    """
    with step(f"plug {_names(devices)}"):
        for device in devices:
            guest.monitor.execute("device_add", **description.device_properties(device))
        for device in devices:
            wait_ready(guest, device)
        ports = [RootPort(device.smmu, device.port) for device in devices]
        wait_for(
            f"the guest to be done with the slots of {_names(devices)}",
            lambda: all(
                power_indicator(config) is PowerIndicator.ON for config in read_config(guest, ports)
            ),
            deadline=PLUG_SECONDS,
            error=ProductError,
        )


def unplug(guest: Guest, *devices: AssignedDevice, deadline: float = UNPLUG_SECONDS) -> None:
    """Ask the guest to give devices up, and wait until they are gone.

    The guest is asked for all devices before the wait. `deadline`, in seconds, is for each device.
    Raises as the module's docstring says.
    """
    with step(f"unplug {_names(devices)}"), _deletions(guest) as told:
        for device in devices:
            try:
                guest.monitor.execute("device_del", id=device.id)
            except QmpRefusedError as refused:
                raise UnplugBlockedError("device_del", refused.reason) from None
        for device in devices:
            _await_gone(guest, device, told, deadline)


def eject(guest: Guest, *devices: AssignedDevice) -> None:
    """Make the guest power its slots off, so that it gives devices up by itself and at once; wait
    until they are gone. Raises ProductError."""
    with step(f"eject {_names(devices)}"), _deletions(guest) as told:
        # All at the same time, because the guest waits a second after it has powered a slot off.
        offs = [f"echo 0 >{_slot(device)}/power &" for device in devices]
        guest.run(f"{' '.join(offs)} wait")
        for device in devices:
            _await_gone(guest, device, told, UNPLUG_SECONDS)


def remove_from_host(guest: Guest, device: AssignedDevice) -> None:
    """Remove a device from the host while the guest uses it, and wait until the host has lost it.

    The host's kernel requests the device from QEMU, and QEMU asks the guest to give it up.
    `pci.rescan` brings the device back, as does the session's end. Raises UnplugRefusedError,
    ProductError.
    """
    with step(f"remove {device.role} {device.host_bdf} from the host"), _deletions(guest) as told:
        pci.remove(guest.session, device.host_bdf)
        _await_gone(guest, device, told, UNPLUG_SECONDS)
        wait_for(
            f"the host to be without {device.host_bdf}",
            lambda: not pci.is_present(guest.session, device.host_bdf),
            deadline=UNPLUG_SECONDS,
            error=ProductError,
        )


def is_plugged(guest: Guest, device: AssignedDevice) -> bool:
    """Return whether QEMU has the device."""
    try:
        guest.monitor.execute("qom-get", path=f"/machine/peripheral/{device.id}", property="type")
    except QmpRefusedError:
        return False
    return True


def is_ready(guest: Guest, device: AssignedDevice) -> bool:
    """Return whether the guest has found the device, and drives it if it has a driver for it."""
    return guest.run(f"cd {device.sysfs} 2>&- && {device.ready}", check=False).status == 0


def wait_ready(guest: Guest, device: AssignedDevice) -> None:
    """Wait until `is_ready`. Raises ProductError."""
    wait_for(
        f"the guest to find {device.role} {device.id} at {device.guest_bdf}",
        partial(is_ready, guest, device),
        deadline=PLUG_SECONDS,
        error=ProductError,
    )


def _slot(device: AssignedDevice) -> str:
    return f"/sys/bus/pci/slots/{description.slot(device.smmu, device.port)}"


Told = Callable[[], list[Event]]


def _deletions(guest: Guest) -> AbstractContextManager[Told]:
    return guest.monitor.listening("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")


def _await_gone(guest: Guest, device: AssignedDevice, told: Told, deadline: float) -> None:
    def over() -> str:
        names = [event.name for event in told() if event.data.get("device") == device.id]
        return names[-1] if names else ""

    def seen() -> str:
        return f"the guest {'keeps' if _has(guest, device) else 'let go of'} the device"

    try:
        end = wait_for(
            f"QEMU to let go of {device.id}",
            over,
            deadline=deadline,
            error=ProductError,
            last_seen=seen,
        )
    except ProductError as expired:
        if _has(guest, device):
            raise UnplugRefusedError(expired.message) from None
        raise
    if end != "DEVICE_DELETED":
        raise UnplugRefusedError(f"the guest refused to give up {device.role} {device.id}")
    wait_for(
        f"the guest to be without {device.role} {device.id}",
        lambda: not _has(guest, device),
        deadline=deadline,
        error=ProductError,
    )


def _has(guest: Guest, device: AssignedDevice) -> bool:
    """Return whether the guest's kernel knows the device, driven or not."""
    return guest.run(f"test -e {device.sysfs}", check=False).status == 0


def _names(devices: tuple[AssignedDevice, ...]) -> str:
    return " and ".join(f"{device.role} {device.id}" for device in devices)
