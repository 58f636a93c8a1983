"""An SMMUv3 event queue's geometry and indices. Pure: registers in, byte ranges out.

Source: Arm IHI 0070, sections 3.5.1 (circular queues) and 6.3 (EVENTQ_BASE, _PROD, _CONS).
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.smmu.events import RECORD_BYTES

#: Register offsets from the SMMU's base; PROD and CONS are on page 1.
EVENTQ_BASE, EVENTQ_PROD, EVENTQ_CONS = 0xA0, 0x100A8, 0x100AC
CR0 = 0x20
CR0_SMMUEN, CR0_EVENTQEN = 1 << 0, 1 << 2
#: Global bypass attribute, and its ABORT and UPDATE.
GBPA, GBPA_ABORT, GBPA_UPDATE = 0x44, 1 << 20, 1 << 31
OVERFLOW_FLAG = 1 << 31

_ADDRESS = ((1 << 52) - 1) & ~0x1F


@dataclass(frozen=True)
class QueueGeometry:
    """Where a queue lies in guest memory and how many entries (a power of two) it has."""

    address: int
    log2size: int

    @classmethod
    def from_register(cls, eventq_base: int) -> QueueGeometry:
        """From EVENTQ_BASE: ADDR[51:5], LOG2SIZE[4:0]."""
        return cls(eventq_base & _ADDRESS, eventq_base & 0x1F)

    @property
    def entries(self) -> int:
        return 1 << self.log2size

    @property
    def index_mask(self) -> int:
        """Index and wrap bit."""
        return (self.entries << 1) - 1

    def index(self, register: int) -> int:
        """The index with its wrap bit, of a PROD or CONS register's value."""
        return register & self.index_mask

    def distance(self, start: int, end: int) -> int:
        """How many entries were produced between two values of PROD.

        Exact while fewer than 2 × entries were; the queue itself never holds more than
        `entries`, so between CONS and PROD it always is.
        """
        return (self.index(end) - self.index(start)) & self.index_mask

    def full(self, prod: int, cons: int) -> bool:
        return self.distance(cons, prod) == self.entries

    def ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        """(guest physical address, bytes) of the entries from `start` up to `end`, in order:
        one range, or two when they wrap. Raises ValueError when older entries are overwritten
        already."""
        count = self.distance(start, end)
        if count > self.entries:
            raise ValueError(
                f"{count} entries were produced, the queue holds {self.entries}: "
                "the oldest are overwritten"
            )
        first = start & (self.entries - 1)
        until_wrap = min(count, self.entries - first)
        pieces = [(first, until_wrap), (0, count - until_wrap)]
        return [(self.address + i * RECORD_BYTES, n * RECORD_BYTES) for i, n in pieces if n]
