"""Decode and encode the records of an iommufd vEVENTQ, which are what a read of its file returns.

Sources: include/uapi/linux/iommufd.h (struct iommufd_vevent_header, enum iommu_veventq_type, struct
iommu_vevent_arm_smmuv3 and iommu_vevent_tegra241_cmdqv); drivers/iommu/iommufd/eventq.c.

Also part of the boundary's supervisor on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

HEADER_BYTES = 8
_HEADER = struct.Struct("<II")  # flags, sequence

#: IOMMU_VEVENTQ_FLAG_LOST_EVENTS, the flag of a header without data at the tail of a full queue.
LOST_EVENTS = 1

#: The kernel counts with (sequence + 1) & INT_MAX.
INT_MAX = 0x7FFF_FFFF
U32_MAX = 0xFFFF_FFFF


class QueueType(enum.IntEnum):
    """The types of vEVENTQs: enum iommu_veventq_type."""

    ARM_SMMUV3 = 1
    TEGRA241_CMDQV = 2

    @property
    def data_bytes(self) -> int:
        """Return how many bytes a record has after its header."""
        return {QueueType.ARM_SMMUV3: 32, QueueType.TEGRA241_CMDQV: 16}[self]

    @property
    def record_bytes(self) -> int:
        """Return how many bytes a record has, its header included."""
        return HEADER_BYTES + self.data_bytes


@dataclass(frozen=True)
class VEvent:
    """One record: the kernel's `sequence` number, the event's `data` (none in a header alone), and
    the header's `flags`."""

    sequence: int
    data: bytes = b""
    flags: int = 0

    def encode(self) -> bytes:
        """Return the record as a read returns it."""
        return _HEADER.pack(self.flags, self.sequence) + self.data

    @classmethod
    def decode(cls, record: bytes) -> VEvent:
        """Decode what a read returned as one record. Raises ValueError if it is shorter than a
        header."""
        if len(record) < HEADER_BYTES:
            raise ValueError(f"a vEVENT has a header of {HEADER_BYTES} bytes, not {len(record)}")
        flags, sequence = _HEADER.unpack_from(record)
        return cls(sequence, record[HEADER_BYTES:], flags)

    @property
    def is_lost_events(self) -> bool:
        """Return whether this is a LOST_EVENTS header."""
        return bool(self.flags & LOST_EVENTS) and not self.data


def lost_events(sequence: int) -> VEvent:
    """Return the header that the kernel queues when it drops an event with that number."""
    return VEvent(sequence, flags=LOST_EVENTS)


def successor(sequence: int) -> int:
    """Return the sequence number that the kernel gives after another."""
    return (sequence + 1) & INT_MAX


def distance(earlier: int, later: int) -> int:
    """Return how many numbers after `earlier` the number `later` is, in the kernel's 31 bits."""
    return (later - earlier) & INT_MAX


def split(data: bytes, kind: QueueType) -> list[bytes]:
    """Split what one read returned, which is as many records as fit, into records.

    Bytes at the end that cannot be a record (the kernel never returns such) are the last piece.
    """
    records, start = [], 0
    while start < len(data):
        flags = data[start]
        size = HEADER_BYTES if flags & LOST_EVENTS else kind.record_bytes
        records.append(data[start : start + size])
        start += size
    return records
