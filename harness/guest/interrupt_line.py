"""The interrupt line (INTx) of an assigned device that sends no messages, and who takes it: the
host, for which vfio does, and the guest."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest

_TABLE = "/proc/interrupts"


@dataclass(frozen=True)
class Interrupts:
    """How many interrupts of a device's line were taken so far. The host's also had earlier
    guests."""

    by_host: int
    by_guest: int

    def __sub__(self, before: Interrupts) -> Interrupts:
        return Interrupts(self.by_host - before.by_host, self.by_guest - before.by_guest)


def interrupts(guest: Guest, device: AssignedDevice) -> Interrupts:
    """Return how many interrupts a device has caused. Raises ProductError if the host or the guest
    does not use its line."""
    # drivers/vfio/pci/vfio_pci_intrs.c calls the line so.
    in_host = _count(guest.host_run(["cat", _TABLE]), f"vfio-intx({device.host_bdf})")
    line = guest.run(f"cat {device.sysfs}/irq").text.strip()
    in_guest = _count(guest.run(f"cat {_TABLE}").text, f"{line}:")
    if in_host is None or in_guest is None:
        raise ProductError(
            f"the {device.role} of guest {guest.name} has no interrupt line that is used: "
            f"{in_host} in the host, {in_guest} in the guest"
        )
    return Interrupts(in_host, in_guest)


def _count(table: str, word: str) -> int | None:
    """Return the sum over all CPUs in the row of /proc/interrupts that has this word; None if there
    is none."""
    header, *rows = table.splitlines()
    cpus = len(header.split())
    for row in rows:
        words = row.split()
        if word in words:
            return sum(map(int, words[1 : 1 + cpus]))
    return None
