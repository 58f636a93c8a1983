"""Calculate with the circular queues of an SMMUv3: geometry and indices. Pure: registers in,
addresses out.

The event queue, the command queue and the queues of a CMDQV differ only in their entries' size.
Source: Arm IHI 0070, sections 3.5.1 (circular queues) and 6.3 (CMDQ_BASE, EVENTQ_BASE, …).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

_LOG2SIZE = 0x1F


@dataclass(frozen=True)
class Ring:
    """A circular queue: its address in memory, the logarithm of its number of entries, and the size
    of an entry in bytes."""

    address: int
    log2size: int
    entry_bytes: int

    @classmethod
    def from_base(cls, base: int, entry_bytes: int, *, address_bits: int = 52) -> Ring:
        """Return the ring of a BASE register: ADDR[address_bits - 1:5], LOG2SIZE[4:0]."""
        address = base & ((1 << address_bits) - 1) & ~_LOG2SIZE
        return cls(address, base & _LOG2SIZE, entry_bytes)

    @property
    def base(self) -> int:
        """Return the value of this queue's BASE register."""
        return self.address | self.log2size

    @cached_property
    def entries(self) -> int:
        """Return how many entries the queue has."""
        return 1 << self.log2size

    @cached_property
    def index_mask(self) -> int:
        """Return the mask of the index and its wrap bit."""
        return (self.entries << 1) - 1

    def index(self, register: int) -> int:
        """Return the index, with its wrap bit, in the value of a PROD or CONS register."""
        return register & self.index_mask

    def after(self, start: int, count: int) -> int:
        """Return the index, with its wrap bit, that is `count` entries after another."""
        return (start + count) & self.index_mask

    def distance(self, start: int, end: int) -> int:
        """Return how many entries were produced between two values of PROD.

        The result is exact if fewer than 2 × `entries` were. Between CONS and PROD it is always
        exact, because the queue never holds more than `entries`.
        """
        return (end - start) & self.index_mask

    def full(self, prod: int, cons: int) -> bool:
        """Return whether a queue with these two registers has no room."""
        return self.distance(cons, prod) == self.entries

    def entry(self, index: int) -> int:
        """Return the address of the entry at an index, which may have its wrap bit."""
        return self.address + index % self.entries * self.entry_bytes

    def ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return (address, bytes) of the entries from `start` up to `end`, in order: one range, or
        two if they wrap. Raises ValueError if the queue has overwritten some of them."""
        count = self.distance(start, end)
        if count > self.entries:
            raise ValueError(
                f"{count} entries were produced, the queue holds {self.entries}: "
                "the oldest are overwritten"
            )
        until_wrap = min(count, self.entries - start % self.entries)
        pieces = [(start, until_wrap), (0, count - until_wrap)]
        return [(self.entry(index), n * self.entry_bytes) for index, n in pieces if n]
