"""A device's DMA follows its stream table entry, GBPA while the SMMU is off, and the guest's
invalidations."""

from __future__ import annotations

import pytest

from harness.devices.source import FaultSource
from harness.faults.command_queue import carry_out
from harness.faults.guest_tables import GuestTables, write_gbpa
from harness.faults.switched_off import switched_off
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.vfio import unbound
from harness.host.ability import PROBE
from harness.smmu.commands import cfgi_ste, tlbi_nh_asid
from harness.smmu.events import EventType
from harness.smmu.registers import CR0_SMMUEN, GBPA_ABORT
from harness.smmu.trace import TraceEvent

ONE = GuestSpec(smmus=(SmmuSpec(devices=(PROBE,)),))
#: The window MAPPED leads here, to the start of a guest's memory.
MEMORY = GuestTables.MAPPED.output


def installed(guest: Guest, vsid: int, since: int) -> list[str]:
    """Return the types of STE that QEMU installed for a vSID, in order. Of several equal ones in a
    row, only the first is returned."""
    kinds = [
        line.text.split("type=")[1].split()[0]
        for line in guest.trace(since).named(TraceEvent.INSTALL_STE)
        if line.number("vSID") == vsid
    ]
    return [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]


def set_domain(guest: Guest, probe: FaultSource, kind: str) -> None:
    """Have the guest's kernel change the type of the default domain of the device's group, which no
    driver may use then."""
    unbound(guest, probe.assigned)
    guest.run(f"echo {kind} >{probe.assigned.sysfs}/iommu_group/type")


@pytest.mark.covers("ACC-06")
@pytest.mark.guest(ONE)
def test_the_life_of_a_stream_table_entry(guest: Guest, probe: FaultSource) -> None:
    vsid, queue = probe.vsid, guest.event_queue()
    start = guest.trace_size()

    set_domain(guest, probe, "identity")
    assert installed(guest, vsid, start)[-1:] == ["bypass"]
    assert probe.reaches()

    start = guest.trace_size()
    set_domain(guest, probe, "DMA")
    assert installed(guest, vsid, start)[-1:] == ["translate"]
    tables = GuestTables(guest, queue, vsid)
    tables.install_windows()
    mark = queue.mark()
    assert not probe.reaches()
    records = queue.wait_for(1, mark)
    assert {record.type for record in records} == {EventType.F_TRANSLATION}
    assert probe.reaches(GuestTables.MAPPED.iova - MEMORY)

    start = guest.trace_size()
    tables.abort_stream_table_entry()
    carry_out(guest, queue, cfgi_ste(vsid))
    assert installed(guest, vsid, start) == ["abort"]
    mark = queue.mark()
    assert not probe.reaches()
    assert not probe.reaches(GuestTables.MAPPED.iova - MEMORY)
    assert queue.count_since(mark) == 0, "an abort raises no event"

    # The guest's kernel frees the tables of a domain, with all that they point to.
    tables.remove_windows()
    start = guest.trace_size()
    set_domain(guest, probe, "identity")
    assert installed(guest, vsid, start)[-1:] == ["bypass"]
    assert probe.reaches()


@pytest.mark.covers("ACC-07")
@pytest.mark.guest(ONE)
def test_gbpa_rules_while_the_smmu_is_off(guest: Guest, probe: FaultSource) -> None:
    queue = guest.event_queue()
    with switched_off(guest, queue, CR0_SMMUEN):
        write_gbpa(guest, queue, 0)
        assert probe.reaches()
        mark = queue.mark()
        write_gbpa(guest, queue, GBPA_ABORT)
        assert not probe.reaches()
        write_gbpa(guest, queue, 0)
        assert probe.reaches()
        assert queue.count_since(mark) == 0


@pytest.mark.known_defect("ACC-07", symptom=r"assert \(False, (True|False)\) == \(True, False\)")
@pytest.mark.covers("ACC-07")
@pytest.mark.guest(ONE)
@pytest.mark.parametrize("value", [0, GBPA_ABORT], ids=["bypass", "abort"])
def test_gbpa_does_not_matter_while_the_smmu_is_on(
    guest: Guest, probe: FaultSource, value: int
) -> None:
    """GBPA applies only while SMMUEN is 0 (IHI 0070, section 6.3.15)."""
    queue = guest.event_queue()
    GuestTables(guest, queue, probe.vsid).install_windows()
    assert probe.reaches(GuestTables.MAPPED.iova - MEMORY)
    write_gbpa(guest, queue, value)
    through_tables = probe.reaches(GuestTables.MAPPED.iova - MEMORY)
    past_them = probe.reaches()
    assert (through_tables, past_them) == (True, False)


def reached(probe: FaultSource) -> tuple[bool, bool]:
    """Return whether a device's DMA gets through the windows of its tables, and past its tables."""
    return probe.reaches(GuestTables.MAPPED.iova - MEMORY), probe.reaches()


#: GBPA's values, each with whether DMA gets past the tables if it rules.
GBPA_VALUES = pytest.mark.parametrize(
    ("gbpa", "past"), [(0, True), (GBPA_ABORT, False)], ids=["bypass", "abort"]
)


@pytest.mark.known_defect("ACC-13", symptom=r"^assert \(True, False\) == \(False, ")
@pytest.mark.covers("ACC-13")
@pytest.mark.guest(ONE)
@GBPA_VALUES
def test_dma_follows_gbpa_once_the_smmu_is_off(
    guest: Guest, probe: FaultSource, gbpa: int, past: bool
) -> None:
    """The write that clears SMMUEN is enough (IHI 0070, sections 6.3.9 and 6.3.15)."""
    queue = guest.event_queue()
    GuestTables(guest, queue, probe.vsid).install_windows()
    with switched_off(guest, queue, CR0_SMMUEN):
        write_gbpa(guest, queue, gbpa)
    # A QEMU that leaves the stream table entry aside from the write of GBPA on applies it again.
    carry_out(guest, queue, cfgi_ste(probe.vsid))
    assert reached(probe) == (True, False), "the stream table entry does not apply"

    with switched_off(guest, queue, CR0_SMMUEN):
        assert reached(probe) == (False, past)


@pytest.mark.known_defect("ACC-13", symptom=r"^assert \(False, .*\) == \(True, False\)")
@pytest.mark.covers("ACC-13")
@pytest.mark.guest(ONE)
@GBPA_VALUES
def test_dma_follows_its_stream_table_entry_once_the_smmu_is_on_again(
    guest: Guest, probe: FaultSource, gbpa: int, past: bool
) -> None:
    """Nothing has changed in the tables, so the guest has nothing to invalidate (IHI 0070, section
    6.3.9)."""
    queue = guest.event_queue()
    GuestTables(guest, queue, probe.vsid).install_windows()
    assert reached(probe) == (True, False), "the stream table entry does not apply"

    with switched_off(guest, queue, CR0_SMMUEN):
        write_gbpa(guest, queue, gbpa)
        assert reached(probe) == (False, past), "GBPA does not rule"

    assert reached(probe) == (True, False)


@pytest.mark.covers("ACC-08")
@pytest.mark.guest(ONE)
def test_what_is_unmapped_and_invalidated_faults(guest: Guest, probe: FaultSource) -> None:
    queue = guest.event_queue()
    tables = GuestTables(guest, queue, probe.vsid)
    tables.install_windows()
    offset = GuestTables.MAPPED.iova - MEMORY
    mark = queue.mark()
    assert probe.reaches(offset)
    assert queue.count_since(mark) == 0
    tables.remove_windows()
    was_cached = probe.reaches(offset)
    carry_out(guest, queue, tlbi_nh_asid(tables.asid))
    mark = queue.mark()
    assert not probe.reaches(offset)
    records = queue.wait_for(1, mark)
    assert {record.type for record in records} == {EventType.F_TRANSLATION}
    if not was_cached:
        pytest.skip("the SMMU had forgotten the mapping already: there was nothing to invalidate")
