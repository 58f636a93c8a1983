"""Have a guest power the slot of a device off, as an operator of a real machine may: QEMU is not
asked, and nobody is asked for the device.

PCIe base specification, 6.7.1.1 (power controller) and 7.5.3.10 (Slot Control).
"""

from __future__ import annotations

from harness.guest import description
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest


def power_off(guest: Guest, device: AssignedDevice) -> None:
    """Have the guest give a device up and power its slot off, whatever QEMU makes of that. `eject`
    of harness.guest.hotplug waits for QEMU to delete the device, too. Errors are those of
    Guest.run."""
    slot = description.slot(device.smmu, device.port)
    guest.run(f"echo 0 >/sys/bus/pci/slots/{slot}/power")
