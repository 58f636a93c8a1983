"""A DMA that meets an invalid stream table entry raises C_BAD_STE in the guest (IHI 0070, sections
5.2 and 7.3.5)."""

from __future__ import annotations

import pytest

from harness.devices.source import FaultSource
from harness.faults.command_queue import carry_out
from harness.faults.guest_tables import GuestTables
from harness.guest.guest import Guest
from harness.smmu.access import Access
from harness.smmu.commands import cfgi_ste
from harness.smmu.events import EventRecord, EventType
from suites.veventq.sources import REACHING, WINDOW_OFFSET, in_tables, parameters

pytestmark = pytest.mark.parametrize("way", [parameters(one) for one in REACHING])


class BadSte:
    """A device of a guest whose stream table entry a test makes invalid."""

    def __init__(self, guest: Guest, way: type[FaultSource]) -> None:
        self.guest, self.source = guest, in_tables(guest, way)
        self.queue = guest.event_queue()
        assert self.source.reaches(WINDOW_OFFSET)
        self.tables = GuestTables(guest, self.queue, self.source.vsid)

    def check_events(self) -> None:
        """Check that the device reaches nothing, once the guest has invalidated what was cached of
        its entry, and that all records of the attempt are C_BAD_STE: how many is the device's."""
        sid = self.source.vsid
        carry_out(self.guest, self.queue, cfgi_ste(sid))
        mark = self.queue.mark()

        assert not self.source.reaches(WINDOW_OFFSET)

        record = EventRecord.configuration_fault(EventType.C_BAD_STE, sid=sid)
        accesses = [Access(record, most=self.queue.geometry().entries)]
        self.queue.expect(accesses, mark, deadline=5)


@pytest.mark.covers("VEQ-21")
def test_a_field_that_the_host_finds_illegal(guest: Guest, way: type[FaultSource]) -> None:
    bad = BadSte(guest, way)
    bad.tables.oversize_stream_table_entry()
    bad.check_events()


@pytest.mark.known_defect(
    "VEQ-21", symptom=r"0 records in all; 0 records, not .* of the access\n  C_BAD_STE "
)
@pytest.mark.covers("VEQ-21")
def test_an_entry_that_is_not_valid(guest: Guest, way: type[FaultSource]) -> None:
    bad = BadSte(guest, way)
    bad.tables.invalidate_stream_table_entry()
    bad.check_events()


@pytest.mark.known_defect("VEQ-21", symptom="^assert not True")
@pytest.mark.covers("VEQ-21")
def test_a_stage_that_the_guest_does_not_have(guest: Guest, way: type[FaultSource]) -> None:
    """The guest's SMMU has no stage 2. CMD_CFGI_STE itself meets no error, whatever the entry is
    (IHI 0070, section 4.3.1)."""
    bad = BadSte(guest, way)
    bad.tables.break_stream_table_entry()
    bad.check_events()
