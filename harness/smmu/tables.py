"""Calculate with the structures that an SMMU walks, as far as a test edits them: stream table,
context descriptor, stage-1 descriptors. Pure arithmetic on words.

Sources: Arm IHI 0070, sections 3.3, 5.1 (L1STD), 5.2 (STE), 5.4 (CD), 6.3.24 (STRTAB_BASE); Arm DDI
0487, section D8.3 (VMSAv8-64 descriptors), 4 KiB granule.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

STE_BYTES, CD_BYTES, L1STD_BYTES = 64, 64, 8

_ADDRESS_51_6 = ((1 << 52) - 1) & ~0x3F
_TABLE_ADDRESS = ((1 << 48) - 1) & ~0xFFF

#: In an STE's word 0: that it is valid; the logarithm of its number of CDs, which no SMMU supports
#: with all its bits set (SMMU_IDR1.SSIDSIZE is 20 at most).
STE0_VALID, STE0_S1CDMAX = 1 << 0, 0b11111 << 59
#: The mask of an STE's Config, bits 3:1, and its value for stage 2 only.
STE0_CONFIG, STE0_CONFIG_S2 = 0b111 << 1, 0b110 << 1

CD0_VALID = 1 << 31
#: The mask of T0SZ in a CD's word 0. TTB0 is in word 1.
CD0_T0SZ = 0x3F


@dataclass(frozen=True)
class StreamTable:
    """A stream table: its address, and the `split` of a two-level table in bits, or None for a
    linear one."""

    address: int
    split: int | None

    @classmethod
    def from_registers(cls, base: int, cfg: int) -> StreamTable:
        """Return the table of STRTAB_BASE and STRTAB_BASE_CFG."""
        two_level = cfg >> 16 & 3 == 1
        return cls(base & _ADDRESS_51_6, cfg >> 6 & 0x1F if two_level else None)

    def level1(self, sid: int) -> int | None:
        """Return the address of a StreamID's level-1 descriptor, or None for a linear table."""
        if self.split is None:
            return None
        return self.address + (sid >> self.split) * L1STD_BYTES

    def ste(self, sid: int, level1_descriptor: int = 0) -> int:
        """Return the address of a StreamID's STE. `level1_descriptor` is what is at the address
        that `level1` returned."""
        if self.split is None:
            return self.address + sid * STE_BYTES
        table = level1_descriptor & _ADDRESS_51_6
        return table + (sid & ((1 << self.split) - 1)) * STE_BYTES


def context_descriptor(ste0: int) -> int:
    """Return the address of the (first) CD, from an STE's word 0."""
    return ste0 & _ADDRESS_51_6


def root_table(cd1: int) -> int:
    """Return TTB0, the address of the root table, from a CD's word 1."""
    return cd1 & _TABLE_ADDRESS


def asid(cd0: int) -> int:
    """Return the ASID, bits 63:48 of a CD's word 0."""
    return cd0 >> 48


def input_bits(cd0: int) -> int:
    """Return how many bits an input address has, 64 − T0SZ, from a CD's word 0."""
    return 64 - (cd0 & CD0_T0SZ)


class Leaf(enum.IntFlag):
    """The attributes of a stage-1 block descriptor at level 1 (1 GiB), which is valid and has
    AttrIndx 0."""

    BLOCK = 0b01
    READ_ONLY = 1 << 7
    UNPRIVILEGED = 1 << 6
    INNER_SHAREABLE = 3 << 8
    ACCESSED = 1 << 10
    NOT_GLOBAL = 1 << 11


TABLE = 0b11
#: A descriptor of level 3 that maps a page.
PAGE = 0b11
PAGE_BYTES = 4096
LEVEL1_BLOCK = 1 << 30
LEVEL0_SPAN = 1 << 39

#: The attributes that Linux gives a DMA mapping that a device may read and write.
READ_WRITE = Leaf.BLOCK | Leaf.UNPRIVILEGED | Leaf.INNER_SHAREABLE | Leaf.ACCESSED | Leaf.NOT_GLOBAL


def table_descriptor(address: int) -> int:
    """Return a descriptor of levels 0 to 2 that points to the next level's table."""
    return address & _TABLE_ADDRESS | TABLE


def block_descriptor(output: int, attributes: Leaf) -> int:
    """Return the descriptor of a 1 GiB block at level 1. Raises ValueError for an unaligned output
    address."""
    if output % LEVEL1_BLOCK:
        raise ValueError(f"{output:#x} is not aligned to a 1 GiB block")
    return output | attributes


def page_descriptor(output: int, attributes: Leaf) -> int:
    """Return the descriptor of a page at level 3, with the attributes of a block. Raises ValueError
    for an unaligned output address."""
    if output % PAGE_BYTES:
        raise ValueError(f"{output:#x} is not aligned to a page of 4 KiB")
    return output | attributes & ~Leaf.BLOCK | PAGE
