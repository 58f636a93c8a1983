"""Tell what reads of a vEVENTQ returned from the memory of an event queue, and take it apart.

A vEVENTQ's record has a header of 8 bytes before the event's 32; a LOST_EVENTS header is alone.
Source: include/uapi/linux/iommufd.h, struct iommufd_vevent_header.
"""

from __future__ import annotations

from harness.smmu.events import RECORD_BYTES, TYPES, EventRecord
from harness.smmu.vevents import (
    HEADER_BYTES,
    INT_MAX,
    LOST_EVENTS,
    QueueType,
    VEvent,
    distance,
    successor,
)

#: From half of all numbers on, a later number is an earlier one.
_TOO_FAR = (INT_MAX + 1) // 2


def size_of(one: VEvent) -> int:
    """Return how many bytes a record has with its header when it is complete."""
    return HEADER_BYTES if one.is_lost_events else QueueType.ARM_SMMUV3.record_bytes


def first_of(data: bytes, last: int | None = None) -> VEvent | None:
    """Return the record that some bytes begin with, with less data if they end before it; None if
    there can be none, after the one with the number `last`."""
    if len(data) < HEADER_BYTES:
        return None
    one = VEvent.decode(data[: QueueType.ARM_SMMUV3.record_bytes])
    if one.flags > LOST_EVENTS or one.sequence > INT_MAX:
        return None
    if last is not None and not 0 < distance(last, one.sequence) < _TOO_FAR:
        return None
    return VEvent(one.sequence, flags=one.flags) if one.flags else one


def number_before(data: bytes) -> int | None:
    """Return the number before the first record's if some bytes begin as what a read of a vEVENTQ
    returns; None if they begin as the memory of an event queue, or as anything else."""
    if data[:1] > b"\1" or any(data[1:4]):
        return None  # most bytes
    first = first_of(data)
    if first is None:
        return None
    before = (first.sequence - 1) & INT_MAX
    if not first.is_lost_events:
        return before if _is_event(first) else None
    if len(data) == HEADER_BYTES:
        return before
    event = first_of(data[HEADER_BYTES:], first.sequence)
    if event is None or not _is_event(event):
        return None
    # The header has the bits of an F_UUT without SubstreamID.
    slot = EventRecord.from_bytes(data[:RECORD_BYTES].ljust(RECORD_BYTES, b"\0"))
    return before if slot.reserved or event.sequence == successor(first.sequence) else None


def beginning(data: bytes, last: int) -> int | None:
    """Return where among some bytes the first record after the one with the number `last` begins;
    None if none does."""
    for at in range(0, min(len(data), QueueType.ARM_SMMUV3.record_bytes), 8):
        if first_of(data[at:], last) and number_before(data[at:]) is not None:
            return at
    return None


def is_read(data: bytes) -> bool:
    """Return whether all of some bytes, but for an incomplete end, are what reads returned."""
    last = number_before(data)
    at = 0
    while last is not None and len(data) - at >= HEADER_BYTES:
        one = first_of(data[at : at + QueueType.ARM_SMMUV3.record_bytes], last)
        if one is None:
            return False
        at += size_of(one)
        last = one.sequence
    return last is not None


def _is_event(one: VEvent) -> bool:
    if not one.data:
        return False
    # Bytes that are not there yet set no reserved bit.
    record = EventRecord.from_bytes(one.data.ljust(RECORD_BYTES, b"\0"))
    # Without a StreamID any array of small numbers looks like an event.
    if not record.words[0] >> 32:
        return False
    return record.type in TYPES and not record.words[0] & 0x700 and record.reserved is None
