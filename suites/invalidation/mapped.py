"""Pages that a device uses, that are taken away, and that the SMMU must forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from harness.devices.source import FaultSource
from harness.errors import ProductError
from harness.faults.command_queue import carry_out
from harness.faults.guest_tables import GuestTables
from harness.faults.mapped_pages import MappedPages
from harness.guest.guest import Guest
from harness.smmu.commands import Command, tlbi_nh_all
from harness.smmu.events import EventType
from harness.smmu.trace import TraceEvent
from harness.waiting import wait_for

#: An IOVA that is never mapped: it is above all windows of GuestTables.
NEVER = GuestTables.UNMAPPED.iova + (1 << 38)


@dataclass
class Mapped:
    """A guest whose device uses pages that the test has mapped."""

    guest: Guest
    source: FaultSource
    tables: GuestTables
    pages: MappedPages

    @classmethod
    def of(cls, guest: Guest, probe: FaultSource, count: int) -> Mapped:
        """Map `count` pages for a device. Where the device needs memory of its own for its DMA, it
        has that in a window that stays."""
        tables = GuestTables(guest, guest.event_queue(), probe.vsid)
        tables.install_windows()
        source = probe.in_kernels_domain(GuestTables.MAPPED.offset)
        pages = MappedPages(tables, count)
        # An earlier test may have used this guest, and had other tables at the same IOVAs.
        carry_out(guest, tables.queue, tlbi_nh_all())
        return cls(guest, source, tables, pages)

    def faulting(self, numbers: Sequence[int]) -> list[int]:
        """Use pages; return the numbers of those at which that faults. Events keep their order: all
        are there when that of a last access is."""
        queue, source = self.guest.event_queue(), self.source
        mark = queue.mark()
        for number in numbers:
            source.perform(source.burst(1, self.pages.iova(number)))
        source.perform(source.burst(1, NEVER))

        def last() -> bool:
            return any(one.input_addr == NEVER for one in queue.since(mark))

        wait_for("the event of the last access", last, deadline=10, error=ProductError)
        records = queue.since(mark)
        assert {one.type for one in records} == {EventType.F_TRANSLATION}
        at = {one.input_addr for one in records} - {NEVER}
        assert at <= {self.pages.iova(number) for number in numbers}
        return [number for number in numbers if self.pages.iova(number) in at]

    def check_forgotten(self, numbers: Sequence[int], *commands: Command) -> None:
        """Check that the SMMU uses none of these pages, which were taken away, once commands to
        invalidate them completed, and that QEMU handed each of them on. Skip the test if the SMMU
        had forgotten the pages before."""
        before, start = self.faulting(numbers), self.guest.trace_size()
        carry_out(self.guest, self.tables.queue, *commands)
        handed_on = self.guest.trace(start).named(TraceEvent.INVALIDATE_CACHE)
        done = [line.number("entry_num") for line in handed_on if line.succeeded]
        assert sum(done) == len(commands)
        assert self.faulting(numbers) == list(numbers)
        if before == list(numbers):
            pytest.skip("the SMMU had forgotten the pages already: nothing was to be invalidated")
