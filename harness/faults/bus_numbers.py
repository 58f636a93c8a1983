"""Have a guest give its buses other numbers while it runs, as a firmware or a kernel may at any
boot. A device gets another StreamID with that, which is its requester ID.

Registers: PCI-to-PCI bridge specification, 3.2.5.2 to 3.2.5.5 (primary, secondary and subordinate
bus number).
"""

from __future__ import annotations

from dataclasses import replace

from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.hotplug import wait_ready
from harness.guest.root_port import RootPort
from harness.steps import step

_PRIMARY = 0x18


def renumber(guest: Guest, device: AssignedDevice, empty: RootPort) -> AssignedDevice:
    """Have the root port of a device and one that is empty exchange their buses' numbers. Return
    the device as the guest finds it then.

    Both must be behind the same SMMU. The guest loses the device and both ports, and finds them
    anew; nothing can be plugged into the empty one afterwards. Errors are those of Guest.run, and
    ProductError if the guest does not find the device.
    """
    ports = [RootPort(device.smmu, device.port), empty]
    buses = [empty.secondary_bus, device.guest_bus]
    numbers = [_numbers_command(port, bus) for port, bus in zip(ports, buses, strict=True)]
    removed = [f"echo 1 >{path}/remove" for path in (port.sysfs for port in ports)]
    moved = replace(device, port=empty.port)
    with step(f"{device.role} {device.id} gets the bus number {moved.guest_bus:#x}"):
        guest.run(
            " && ".join(
                [
                    f"echo 1 >{device.sysfs}/remove",
                    *numbers,
                    *removed,
                    "echo 1 >/sys/bus/pci/rescan",
                ]
            )
        )
        wait_ready(guest, moved)
    return moved


def _numbers_command(port: RootPort, bus: int) -> str:
    """Return the guest's shell command that gives the bus behind a port a number."""
    octal = "".join(f"\\{number:o}" for number in (port.bus, bus, bus))
    write = f"dd of={port.sysfs}/config bs=1 seek={_PRIMARY} conv=notrunc 2>&-"
    return f"printf '{octal}' | {write}"
