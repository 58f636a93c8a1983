"""Records of an iommufd vEVENTQ: what a read of its file returns.

include/uapi/linux/iommufd.h: struct iommufd_vevent_header, enum iommu_veventq_type, struct
iommu_vevent_arm_smmuv3 and iommu_vevent_tegra241_cmdqv; drivers/iommu/iommufd/eventq.c.

Also part of the boundary's supervisor on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

HEADER_BYTES = 8
_HEADER = struct.Struct("<II")  # flags, sequence

#: IOMMU_VEVENTQ_FLAG_LOST_EVENTS: a header without data, the last thing in a full queue.
LOST_EVENTS = 1

#: The kernel counts with (sequence + 1) & INT_MAX.
INT_MAX = 0x7FFF_FFFF
U32_MAX = 0xFFFF_FFFF


class QueueType(enum.IntEnum):
    """enum iommu_veventq_type."""

    ARM_SMMUV3 = 1
    TEGRA241_CMDQV = 2

    @property
    def data_bytes(self) -> int:
        """Bytes of a record after its header."""
        return {QueueType.ARM_SMMUV3: 32, QueueType.TEGRA241_CMDQV: 16}[self]

    @property
    def record_bytes(self) -> int:
        return HEADER_BYTES + self.data_bytes


@dataclass(frozen=True)
class VEvent:
    """One record: the kernel's `sequence` and the event's `data`; a header alone has none."""

    sequence: int
    data: bytes = b""
    flags: int = 0

    def encode(self) -> bytes:
        return _HEADER.pack(self.flags, self.sequence) + self.data

    @classmethod
    def decode(cls, record: bytes) -> VEvent:
        """Raises ValueError when there is not even a header."""
        if len(record) < HEADER_BYTES:
            raise ValueError(f"a vEVENT has a header of {HEADER_BYTES} bytes, not {len(record)}")
        flags, sequence = _HEADER.unpack_from(record)
        return cls(sequence, record[HEADER_BYTES:], flags)

    @property
    def is_lost_events(self) -> bool:
        return bool(self.flags & LOST_EVENTS) and not self.data


def lost_events(sequence: int) -> VEvent:
    """The header that the kernel queues when it drops an event, with that event's number."""
    return VEvent(sequence, flags=LOST_EVENTS)


def successor(sequence: int) -> int:
    return (sequence + 1) & INT_MAX


def distance(earlier: int, later: int) -> int:
    """How many events after `earlier` the kernel counted `later`, in its 31-bit arithmetic."""
    return (later - earlier) & INT_MAX


def split(data: bytes, kind: QueueType) -> list[bytes]:
    """The records of one read, which returns as many as fit.

    What cannot be a record (the kernel never does that) is the last piece, as it is.
    """
    records, start = [], 0
    while start < len(data):
        flags = data[start]
        size = HEADER_BYTES if flags & LOST_EVENTS else kind.record_bytes
        records.append(data[start : start + size])
        start += size
    return records
