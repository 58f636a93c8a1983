"""Change the ACPI tables of a running guest in its memory. The guest's kernel reads the IORT each
time that it finds a device.

Source: ACPI specification 6.5, section 5.2.5 (RSDP) to 5.2.8 (XSDT).
"""

from __future__ import annotations

from harness.errors import HarnessError
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, read32, read64, write32
from harness.smmu import iort

_XSDT, _LENGTH, _HEADER_BYTES = 24, 4, 36
_IORT = int.from_bytes(b"IORT", "little")


def permit_remapping(guest: Guest) -> None:
    """Take back the IORT's demand that devices find reserved memory ranges one to one, for devices
    that the guest finds from now on. Raises HarnessError for a guest whose tables are not found."""
    fixed = iort.fixed_ranges(guest.run("cat /sys/firmware/acpi/tables/IORT").data)
    if fixed:
        start = _iort_address(guest)
        permit = iort.REMAPPING_PERMITTED
        Mmio(guest).run(*(write32(start + at, flags | permit) for at, flags in fixed.items()))


def _iort_address(guest: Guest) -> int:
    """Return the physical address of the guest's IORT."""
    memory = Mmio(guest)
    systab = guest.run("sed -n s/^ACPI20=//p /sys/firmware/efi/systab").text.strip()
    if not systab:
        raise HarnessError(
            f"guest {guest.name} does not say where its ACPI tables are",
            fix="build its kernel with CONFIG_EFI",
        )
    (xsdt,) = memory.run(read64(int(systab, 16) + _XSDT))
    (length,) = memory.run(read32(xsdt + _LENGTH))
    words = range(xsdt + _HEADER_BYTES, xsdt + length, 4)
    halves = memory.run(*(read32(at) for at in words))
    tables = [low | high << 32 for low, high in zip(halves[::2], halves[1::2], strict=True)]
    for address, signature in zip(
        tables, memory.run(*(read32(table) for table in tables)), strict=True
    ):
        if signature == _IORT:
            return address
    raise HarnessError(f"guest {guest.name} has no IORT among its {len(tables)} ACPI tables")
