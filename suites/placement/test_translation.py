"""A device's DMA follows its stream table entry, GBPA while the SMMU is off, and the guest's
invalidations."""

from __future__ import annotations

import secrets

import pytest

from harness.devices.dma import Direction, Dma
from harness.devices.edu import Edu
from harness.faults.command_queue import carry_out
from harness.faults.guest_tables import GuestTables, pin_page, write_gbpa
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.event_queue import EventQueue
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, write64
from harness.smmu.commands import cfgi_ste, tlbi_nh_asid
from harness.smmu.events import EventType
from harness.smmu.registers import CR0, CR0_SMMUEN, GBPA_ABORT
from harness.smmu.trace import TraceEvent

ONE = GuestSpec(smmus=(SmmuSpec(devices=("edu",)),))
#: The window MAPPED leads here, to the start of a guest's memory.
MEMORY = GuestTables.MAPPED.output


class Copier:
    """Copy a word from one page of the guest's memory to another by an edu's DMA."""

    def __init__(self, guest: Guest, edu: Edu) -> None:
        self.guest, self.edu, self.queue = guest, edu, guest.event_queue()
        self.source, self.target = pin_page(guest), pin_page(guest)

    def arrives(self, offset: int = 0) -> bool:
        """Copy a random word, and return whether it arrived. The device uses the pages' physical
        addresses plus `offset` as IOVAs."""
        word = secrets.randbits(64)
        Mmio(self.guest).run(write64(self.source, word))
        self.edu.perform(Dma(self.source + offset, 8, Direction.READ))
        self.edu.perform(Dma(self.target + offset, 8, Direction.WRITE))
        return int.from_bytes(self.queue.memory(self.target, 8), "little") == word


@pytest.fixture
def copier(guest: Guest, edu: Edu) -> Copier:
    return Copier(guest, edu)


def installed(guest: Guest, vsid: int, since: int) -> list[str]:
    """Return the types of STE that QEMU installed for a vSID, in order. Of several equal ones in a
    row, only the first is returned."""
    kinds = [
        line.text.split("type=")[1].split()[0]
        for line in guest.trace(since).named(TraceEvent.INSTALL_STE)
        if line.number("vSID") == vsid
    ]
    return [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]


def set_domain(guest: Guest, edu: Edu, kind: str) -> None:
    """Have the guest's kernel change the type of the default domain of the device's group."""
    guest.run(f"echo {kind} >{edu.assigned.sysfs}/iommu_group/type")


@pytest.mark.covers("ACC-06")
@pytest.mark.guest(ONE)
def test_the_life_of_a_stream_table_entry(guest: Guest, edu: Edu, copier: Copier) -> None:
    vsid, queue = edu.vsid, copier.queue
    start = guest.trace_size()

    set_domain(guest, edu, "identity")
    assert installed(guest, vsid, start)[-1] == "bypass"
    assert copier.arrives()

    start = guest.trace_size()
    set_domain(guest, edu, "DMA")
    assert installed(guest, vsid, start)[-1] == "translate"
    tables = GuestTables(guest, queue, vsid)
    tables.install_windows()
    mark = queue.mark()
    assert not copier.arrives()
    records = queue.wait_for(4, mark)
    assert {record.type for record in records} == {EventType.F_TRANSLATION}
    assert copier.arrives(GuestTables.MAPPED.iova - MEMORY)

    start = guest.trace_size()
    tables.abort_stream_table_entry()
    carry_out(guest, queue, cfgi_ste(vsid))
    assert installed(guest, vsid, start) == ["abort"]
    mark = queue.mark()
    assert not copier.arrives()
    assert not copier.arrives(GuestTables.MAPPED.iova - MEMORY)
    assert queue.count_since(mark) == 0, "an abort raises no event"

    start = guest.trace_size()
    set_domain(guest, edu, "identity")
    assert installed(guest, vsid, start)[-1] == "bypass"
    assert copier.arrives()


def write_cr0(guest: Guest, queue: EventQueue, value: int) -> None:
    Mmio(guest).write(queue.base + CR0, value)


@pytest.mark.covers("ACC-07")
@pytest.mark.guest(ONE)
def test_gbpa_rules_while_the_smmu_is_off(guest: Guest, copier: Copier) -> None:
    queue = copier.queue
    write_cr0(guest, queue, queue.register(CR0) & ~CR0_SMMUEN)
    write_gbpa(guest, queue, 0)
    assert copier.arrives()
    mark = queue.mark()
    write_gbpa(guest, queue, GBPA_ABORT)
    assert not copier.arrives()
    write_gbpa(guest, queue, 0)
    assert copier.arrives()
    assert queue.count_since(mark) == 0


@pytest.mark.known_defect("ACC-07", symptom=r"assert \(False, (True|False)\) == \(True, False\)")
@pytest.mark.covers("ACC-07")
@pytest.mark.guest(ONE)
@pytest.mark.parametrize("value", [0, GBPA_ABORT], ids=["bypass", "abort"])
def test_gbpa_does_not_matter_while_the_smmu_is_on(
    guest: Guest, edu: Edu, copier: Copier, value: int
) -> None:
    """GBPA applies only while SMMUEN is 0 (IHI 0070, section 6.3.15)."""
    queue = copier.queue
    GuestTables(guest, queue, edu.vsid).install_windows()
    assert copier.arrives(GuestTables.MAPPED.iova - MEMORY)
    write_gbpa(guest, queue, value)
    through_tables = copier.arrives(GuestTables.MAPPED.iova - MEMORY)
    past_them = copier.arrives()
    assert (through_tables, past_them) == (True, False)


@pytest.mark.covers("ACC-08")
@pytest.mark.guest(ONE)
def test_what_is_unmapped_and_invalidated_faults(guest: Guest, edu: Edu, copier: Copier) -> None:
    queue = copier.queue
    tables = GuestTables(guest, queue, edu.vsid)
    tables.install_windows()
    offset = GuestTables.MAPPED.iova - MEMORY
    mark = queue.mark()
    assert copier.arrives(offset)
    assert queue.count_since(mark) == 0
    tables.remove_windows()
    was_cached = copier.arrives(offset)
    carry_out(guest, queue, tlbi_nh_asid(tables.asid))
    mark = queue.mark()
    assert not copier.arrives(offset)
    records = queue.wait_for(4, mark)
    assert {record.type for record in records} == {EventType.F_TRANSLATION}
    if not was_cached:
        pytest.skip("the SMMU had forgotten the mapping already: there was nothing to invalidate")
