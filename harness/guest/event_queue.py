"""Read a guest's event queue from the guest's memory. This witness is exact to the bit.

Registers and few records are read with `xp` of QEMU's human monitor, which can read devices, and
many records with QMP's `pmemsave`. Neither disturbs the guest.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import ProductError
from harness.expectation import DiffersError
from harness.guest.journal import Journal
from harness.host.session import Session
from harness.qmp import Monitor
from harness.smmu.access import Access, fewest, mismatch
from harness.smmu.events import RECORD_BYTES, EventRecord, decode_records
from harness.smmu.registers import CR0, CR0_EVENTQEN, EVENTQ_BASE, EVENTQ_CONS, EVENTQ_PROD
from harness.smmu.ring import Ring
from harness.steps import step
from harness.waiting import wait_for

#: The most bytes that are read with `xp`. A file costs a program on the host, and a word of `xp`
#: the monitor's text.
_FEW_BYTES = 2048


@dataclass(frozen=True)
class QueueMark:
    """A position in the queue: PROD's index with its wrap bit."""

    prod: int


class TooFewError(ProductError):
    """Fewer records than expected arrived before the deadline."""


def _stream(record: EventRecord) -> int:
    return record.sid or 0


class EventQueue:
    """The event queue of a guest's SMMU number `smmu`, with registers at guest physical `base`.
    `exact` says that its host's SMMU merges nothing and leaves no field UNKNOWN."""

    def __init__(
        self,
        monitor: Monitor,
        session: Session,
        smmu: int,
        base: int,
        scratch: str,
        journal: Journal,
        *,
        exact: bool,
    ) -> None:
        self.monitor, self.session = monitor, session
        self.smmu, self.base, self.scratch = smmu, base, scratch
        self.journal = journal
        self.exact = exact

    # -- registers -------------------------------------------------------------------------

    def register(self, offset: int, width: int = 4) -> int:
        """Return an SMMU register of 4 or 8 bytes (`width`), as the guest would read it."""
        return self._read(self.base + offset, 1, width)[0]

    def _read(self, address: int, count: int, width: int) -> list[int]:
        size = {4: "w", 8: "g"}[width]
        said = self.monitor.human(f"xp /{count}x{size} {address:#x}")
        values = re.findall(rf"\b0x[0-9a-f]{{{2 * width}}}\b", said)
        if len(values) != count:
            raise ProductError(
                f"QEMU's monitor did not read {count} × {width} bytes at {address:#x}: {said!r}"
            )
        return [int(value, 16) for value in values]

    @property
    def enabled(self) -> bool:
        """Return whether the guest has enabled the queue."""
        return bool(self.register(CR0) & CR0_EVENTQEN)

    def geometry(self) -> Ring:
        """Return where the queue lies and how many entries it has."""
        return Ring.from_base(self.register(EVENTQ_BASE, 8), RECORD_BYTES)

    @property
    def prod(self) -> int:
        """Return EVENTQ_PROD, and note it in the guest's journal."""
        value = self.register(EVENTQ_PROD)
        self.journal.read(self.smmu, value)
        return value

    @property
    def cons(self) -> int:
        """Return EVENTQ_CONS."""
        return self.register(EVENTQ_CONS)

    def mark(self) -> QueueMark:
        """Return the current position: `since` gives the records that are written after it."""
        return QueueMark(self.geometry().index(self.prod))

    # -- records ---------------------------------------------------------------------------

    def count_since(self, mark: QueueMark) -> int:
        """Return how many records were written after `mark`."""
        return self.geometry().distance(mark.prod, self.prod)

    def since(self, mark: QueueMark) -> list[EventRecord]:
        """Return the records from `mark` on, in order. Raises ValueError if the queue has
        overwritten some of them."""
        return [
            record
            for address, size in self.geometry().ranges(mark.prod, self.prod)
            for record in decode_records(self.memory(address, size))
        ]

    def latest(self, count: int) -> list[EventRecord]:
        """Return up to `count` records before PROD, oldest first, whether the guest has read them
        or not."""
        geometry, prod = self.geometry(), self.prod
        index = geometry.index(prod)
        written = geometry.entries if index & geometry.entries else index
        return self.since(QueueMark((index - min(count, written)) & geometry.index_mask))

    def wait_for(self, count: int, mark: QueueMark, *, deadline: float = 10.0) -> list[EventRecord]:
        """Wait until there are at least `count` records from `mark` on, and return all of them.

        Raises TooFewError after `deadline` seconds; it says how many there are.
        """
        geometry = self.geometry()
        with step(f"wait for {count} event records"):
            wait_for(
                f"{count} event records in the guest's queue",
                lambda: geometry.distance(mark.prod, self.prod) >= count,
                deadline=deadline,
                error=TooFewError,
                last_seen=lambda: f"{geometry.distance(mark.prod, self.prod)} records",
            )
        with step("read the queue from the guest's memory"):
            return self.since(mark)

    def expect(
        self,
        expected: Sequence[Access | EventRecord],
        mark: QueueMark,
        *,
        deadline: float = 10.0,
        exact: bool | None = None,
        interleaved: bool = False,
    ) -> list[EventRecord]:
        """Wait until the records from `mark` on are what these accesses raise, and return them. An
        EventRecord stands for an access that raises just that record.

        It waits `deadline` seconds at most, and not for records beyond those. `exact` is as in
        harness.smmu.access.mismatch; by default it is the queue's. If `interleaved` is true, order
        counts only among the records of each StreamID. Raises DiffersError with the actual records.
        """
        exact = self.exact if exact is None else exact
        accesses = [one if isinstance(one, Access) else Access(one) for one in expected]
        if interleaved:
            accesses.sort(key=lambda access: _stream(access.record))
        least, geometry = fewest(accesses, exact=exact), self.geometry()
        in_full = exact and all(one.most == 1 for one in accesses)
        seen: list[EventRecord] = []
        differs = ""

        def compared() -> list[EventRecord]:
            return sorted(seen, key=_stream) if interleaved else seen

        def complete() -> bool:
            nonlocal seen, differs
            count = geometry.distance(mark.prod, self.prod)
            if count < least or count == len(seen) > 0:
                return False
            seen = self.since(mark)
            differs = mismatch(compared(), accesses, exact=exact)
            # Where a record may be one of several pieces, the others may still come.
            return not differs or in_full

        what = f"the guest's event queue of smmu{self.smmu}"
        with step(f"wait for {least} event records or more"):
            try:
                wait_for(
                    f"{least} event records in {what}",
                    complete,
                    deadline=deadline,
                    error=TooFewError,
                )
            except TooFewError:
                seen = self.since(mark)
                differs = mismatch(compared(), accesses, exact=exact)
        if differs:
            shown = [one.record if one.most == 1 else one for one in accesses]
            raise DiffersError(what, compared(), shown, differs)
        return seen

    def memory(self, address: int, size: int) -> bytes:
        """Return `size` bytes of the guest's physical memory from `address` on."""
        if size <= _FEW_BYTES and not address % 8 and not size % 8:
            words = self._read(address, size // 8, 8)
            return struct.pack(f"<{len(words)}Q", *words)
        self.monitor.execute("pmemsave", val=address, size=size, filename=self.scratch)
        return self.session.read_file(self.scratch)
