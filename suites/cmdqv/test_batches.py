"""Commands that are given to a command queue together are all carried out, in their order, each
with its operands. A command that is right is carried out beside others, an ATC_INV too."""

from __future__ import annotations

import pytest

from harness.devices.source import FaultSource
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.fixtures.guests import with_cmdqv
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.ability import ANY, PROBE
from harness.host.host import Host, Silicon
from harness.smmu.commands import Command, atc_inv, sync, tlbi_nh_asid, tlbi_nh_va
from suites.cmdqv.errors import logged
from suites.cmdqv.queues import QUEUES, acknowledged
from suites.invalidation.mapped import Mapped

TWO = with_cmdqv(ANY, ANY)
#: The VMID in a command, which the hardware sets.
VMID = 0xFFFF << 32
#: A guest's queue has 256 entries. The last one of a batch is a CMD_SYNC.
MOST = 255

pytestmark = pytest.mark.needs("cmdqv")


@pytest.mark.covers("CQV-26")
@pytest.mark.guest(with_cmdqv(PROBE), freshness=Freshness.SHARED)
@pytest.mark.parametrize("lvcmdq", QUEUES)
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, MOST])
def test_no_page_of_a_batch_is_left_out(
    guest: Guest, probe: FaultSource, lvcmdq: int, count: int
) -> None:
    mapped, cmdqv = Mapped.of(guest, probe, count), GuestCmdqv(guest)
    some = sorted({0, count // 2, count - 1})
    assert mapped.faulting(some) == []
    mapped.pages.unmap(0, count)
    before, asid = mapped.faulting(some), mapped.tables.asid
    batch = [tlbi_nh_va(asid, mapped.pages.iova(number)) for number in range(count)]
    cmdqv.carry_out(lvcmdq, *batch, sync())
    assert mapped.faulting(some) == some
    if before == some:
        pytest.skip("the SMMU had forgotten the pages already: nothing was to be invalidated")


@pytest.mark.covers("CQV-26", "CQV-23")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.guest(TWO, freshness=Freshness.SHARED)
@pytest.mark.parametrize("lvcmdq", QUEUES)
@pytest.mark.parametrize(
    ("address", "log2_pages"),
    [(0, 0), (0x4000_1000, 0), (0x4000_0000, 4), (0xFFFF_FFFF_F000, 0), (0, 52)],
    ids=["page-0", "a-page", "16-pages", "high-page", "all"],
)
def test_an_atc_inv_keeps_its_operands_and_its_place(
    guest: Guest, host: Host, silicon: Silicon, lvcmdq: int, address: int, log2_pages: int
) -> None:
    """The SMMU gets each command of a batch as the guest gave it, but for the StreamID and the
    VMID, and no CMD_SYNC, which is the queue's own. The driver is told of no error."""
    cmdqv, told = GuestCmdqv(guest), logged(guest)

    def batch(sids: list[int]) -> list[Command]:
        first, second = (atc_inv(sid, address, log2_pages) for sid in sids)
        return [tlbi_nh_asid(1), first, sync(), second, tlbi_nh_va(2, address), second, sync()]

    virtual = [device.vsid for device in guest.devices]
    physical = [host.stream_id(device.host_bdf) for device in guest.devices]
    before = silicon.count()

    cmdqv.carry_out(lvcmdq, *batch(virtual))

    assert [one[1:] for one in silicon.commands(before)] == [
        (lvcmdq, *command) for command in batch(virtual)
    ]
    expected = [command for command in batch(physical) if command != sync()]
    translation = {tlbi_nh_asid(1), tlbi_nh_va(2, address)}
    issued = [
        (low & ~VMID if (low & ~VMID, high) in translation else low, high)
        for _, _, low, high in silicon.issued(before)
    ]
    assert issued == expected
    assert acknowledged(cmdqv, lvcmdq)
    assert logged(guest) == told
