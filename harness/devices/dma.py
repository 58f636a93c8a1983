"""A DMA that a device is told to perform, and addresses to perform it at."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.smmu.events import EventRecord, EventType

#: The width of the accesses that an emulated device's DMA is made of while it faults.
ACCESS_BYTES = 4
#: Nobody maps it: for a device without a driver a guest maps DOORBELLS, and no more. It is in a
#: guest's memory, so that a DMA that is not translated harms nothing and raises no event.
UNMAPPED = 0x4000_0000
#: What a guest maps one to one for devices behind an accelerated SMMU (an RMR node of QEMU's IORT):
#: there the host has its MSI doorbells (Linux: MSI_IOVA_BASE). A DMA to it that faults does so in
#: stage 2, and is the host's.
DOORBELLS = range(0x0800_0000, 0x0810_0000)
_U64 = 1 << 64


class Direction(enum.Enum):
    """Seen from the device: READ takes data out of memory, WRITE puts data into it."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True)
class Dma:
    """A DMA to perform: `length` bytes at `iova`. Raises HarnessError for one that cannot be."""

    iova: int
    length: int
    direction: Direction

    def __post_init__(self) -> None:
        if not (self.iova >= 0 and self.length > 0 and self.iova + self.length <= _U64):
            raise HarnessError(f"no DMA: {self.length} bytes at {self.iova:#x}")

    def __str__(self) -> str:
        return f"{self.direction.value} {self.length} bytes at {self.iova:#x}"

    @property
    def faults(self) -> int:
        """How many events it raises when nothing of it is mapped. Accesses are aligned."""
        first, last = self.iova // ACCESS_BYTES, (self.iova + self.length - 1) // ACCESS_BYTES
        return last - first + 1

    def expected(self, kind: EventType, vsid: int) -> list[EventRecord]:
        """Return the records of a DMA whose every access meets the same stage-1 translation
        fault."""
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
