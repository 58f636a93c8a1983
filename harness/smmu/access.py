"""Compare event records with the accesses of a device that must have raised them.

On emulated hardware every faulting access raises one record, equal to the bit, in order. A real
SMMU may merge equal records (STE.MEV), and leaves fields that mean nothing for a record UNKNOWN; a
real device, or the bus, may cut an access in pieces. Arm IHI 0070, sections 3.5.5 and 7.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from harness.expectation import difference
from harness.smmu.events import EventRecord

#: The smallest piece of an access that raises a record of its own, in bytes: QEMU's.
WORD_BYTES = 4


@dataclass(frozen=True)
class Access:
    """An access that faults. It raises `record`, once.

    If it may be cut in pieces, it raises 1 to `most` records. Each is `record`, except that its
    InputAddr may be up to `span` - 1 bytes higher.
    """

    record: EventRecord
    span: int = 1
    most: int = 1

    @classmethod
    def cut(cls, record: EventRecord, length: int) -> Self:
        """Return an access of `length` bytes that may be cut in pieces."""
        first = (record.input_addr or 0) // WORD_BYTES
        last = ((record.input_addr or 0) + length - 1) // WORD_BYTES
        return cls(record, length, last - first + 1)

    def raises(self, record: EventRecord) -> bool:
        """Return whether the access may have raised a record."""
        above = record.words[2] - self.record.words[2]
        words = (*record.words[:2], self.record.words[2], record.words[3])
        return 0 <= above < self.span and words == self.record.words

    def __str__(self) -> str:
        if self.most == 1:
            return str(self.record)
        return f"{self.record}  in 1 to {self.most} pieces within {self.span} bytes"


def fewest(accesses: Sequence[Access], *, exact: bool) -> int:
    """Return how many records these accesses raise at least. `exact` is as in `mismatch`."""
    return len(accesses) if exact else len(Counter(accesses))


def mismatch(records: Sequence[EventRecord], accesses: Sequence[Access], *, exact: bool) -> str:
    """Say in one sentence how records differ from what accesses raise; empty if they do not.

    `exact` says that the SMMU merges nothing and leaves no field UNKNOWN, so that order, number and
    every bit count. Otherwise each different access must have raised a record, and nothing else may
    be there.
    """
    if exact and all(access.most == 1 for access in accesses):
        return difference(records, [access.record for access in accesses])
    seen = records if exact else [record.defined() for record in records]
    return _unaccounted(seen, accesses, exact)


def _unaccounted(records: Sequence[EventRecord], accesses: Sequence[Access], exact: bool) -> str:
    wanted = Counter(accesses)
    single = {access.record: access for access in wanted if access.span == 1}
    ranges = [access for access in wanted if access.span > 1]
    found: Counter[Access] = Counter()
    for index, record in enumerate(records):
        access = single.get(record) or next((one for one in ranges if one.raises(record)), None)
        if access is None:
            return f"record {index} of {len(records)} is of no access that was made\n  {record}"
        found[access] += 1
    for access, times in wanted.items():
        least, most = times if exact else 1, times * access.most
        if not least <= found[access] <= most:
            many = f"{least}" if least == most else f"{least} to {most}"
            seen = f"{len(records)} records in all; {found[access]} records, not {many}, "
            return f"{seen}of the access\n  {access}"
    return ""
