"""Change the ACPI tables of a running guest in its memory. The guest's kernel reads the IORT each
time that it finds a device."""

from __future__ import annotations

from harness.errors import HarnessError
from harness.guest.guest import Guest
from harness.guest.mmio import Op, write32
from harness.smmu import iort


def permit_remapping(guest: Guest) -> list[Op]:
    """Return the operations on the guest's memory that take back the IORT's demand that devices
    find reserved memory ranges one to one, for devices that the guest finds afterwards. Raises
    HarnessError for a guest whose tables are not found."""
    done = guest.run("hil acpi IORT && cat /sys/firmware/acpi/tables/IORT", check=False)
    if done.status != 0:
        raise HarnessError(
            f"guest {guest.name} does not say where its ACPI tables are: {done.text.strip()}",
            fix="build its kernel with CONFIG_EFI and CONFIG_DEVMEM",
        )
    address, table = done.data.split(b"\n", 1)
    permit, start = iort.REMAPPING_PERMITTED, int(address, 16)
    return [write32(start + at, flags | permit) for at, flags in iort.fixed_ranges(table).items()]
