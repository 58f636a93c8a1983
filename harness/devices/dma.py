"""Describe a DMA that a device is told to perform, and name addresses for it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.host.ability import Ability

#: An IOVA that is not mapped: for a device without a driver a guest maps DOORBELLS only. It is also
#: an address of the guest's memory, so that an untranslated DMA does no harm and raises no event.
UNMAPPED = 0x4000_0000
#: The IOVAs that a guest maps one to one for devices behind an accelerated SMMU (an RMR node of
#: QEMU's IORT), because the host has its MSI doorbells there (Linux: MSI_IOVA_BASE). A DMA there
#: faults in stage 2, if at all: that fault is the host's.
DOORBELLS = range(0x0800_0000, 0x0810_0000)
_U64 = 1 << 64


class Direction(enum.Enum):
    """The direction as seen from the device: READ reads memory, WRITE writes it."""

    READ = "read"
    WRITE = "write"

    @property
    def ability(self) -> Ability:
        """Return the ability of a device that performs DMA in this direction."""
        return Ability(self.value)


@dataclass(frozen=True)
class Dma:
    """A DMA to perform: `length` bytes at `iova`. Raises HarnessError for an impossible range.

    What events it raises if it faults depends on the device: see FaultSource.expected.
    """

    iova: int
    length: int
    direction: Direction

    def __post_init__(self) -> None:
        if not (self.iova >= 0 and self.length > 0 and self.iova + self.length <= _U64):
            raise HarnessError(
                f"no DMA can have {self.length} bytes at {self.iova:#x}",
                fix="choose at least one byte, and a range within 64-bit addresses",
            )

    def __str__(self) -> str:
        return f"{self.direction.value} {self.length} bytes at {self.iova:#x}"
