"""Describe a DMA that a device is told to perform, and name addresses for it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.smmu.events import EventRecord, EventType

#: The width, in bytes, of the accesses that a faulting DMA of an emulated device is made of.
ACCESS_BYTES = 4
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


@dataclass(frozen=True)
class Dma:
    """A DMA to perform: `length` bytes at `iova`. Raises HarnessError for an impossible range."""

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

    @property
    def faults(self) -> int:
        """Return how many events an emulated device's DMA raises if none of it is mapped: one for
        each aligned access."""
        first, last = self.iova // ACCESS_BYTES, (self.iova + self.length - 1) // ACCESS_BYTES
        return last - first + 1

    def expected(self, kind: EventType, vsid: int) -> list[EventRecord]:
        """Return the records of an emulated device's DMA, each of whose accesses meets the same
        stage-1 translation fault."""
        start = self.iova
        records = []
        while start < self.iova + self.length:
            records.append(
                EventRecord.stage1_fault(
                    kind, sid=vsid, input_addr=start, rnw=self.direction is Direction.READ
                )
            )
            start = (start // ACCESS_BYTES + 1) * ACCESS_BYTES
        return records
