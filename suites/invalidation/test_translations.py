"""The SMMU no longer uses a translation once a guest's command to invalidate it completed, by
whichever of the commands that cover it.

QEMU hands a guest's command on to the host's kernel, which puts the guest's VMID into it. Each test
uses mapped pages, takes them away, looks that the SMMU still uses them, and invalidates them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.devices.source import FaultSource
from harness.faults.command_queue import carry_out
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.ability import PROBE
from harness.smmu.commands import (
    Command,
    tlbi_nh_all,
    tlbi_nh_asid,
    tlbi_nh_va,
    tlbi_nh_vaa,
    tlbi_nsnh_all,
)
from suites.invalidation.mapped import Mapped


def guest_with(ril: str) -> GuestSpec:
    """Return a guest with or without range invalidation (SMMU_IDR3.RIL). It has no CMDQV, so that
    QEMU gets its commands."""
    properties = (("cmdqv", "off"), ("ril", ril))
    return GuestSpec(smmus=(SmmuSpec(devices=(PROBE,), properties=properties),))


#: Returns the command that invalidates the page at an IOVA, in the address space of an ASID.
Invalidation = Callable[[int, int], Command]

with_ranges = pytest.mark.guest(guest_with("on"), freshness=Freshness.SHARED)
without_ranges = pytest.mark.guest(guest_with("off"), freshness=Freshness.SHARED)

#: Commands for a page whose own descriptor has become invalid, and for one to which the tables no
#: longer lead. Those without an address, or without Leaf, are for both.
OF_A_PAGE: dict[str, Invalidation] = {
    "NH_VA-leaf": tlbi_nh_va,
    "NH_VAA-leaf": lambda asid, iova: tlbi_nh_vaa(iova),
}
OF_A_TABLE: dict[str, Invalidation] = {
    "NH_VA": lambda asid, iova: tlbi_nh_va(asid, iova, leaf=False),
    "NH_VAA": lambda asid, iova: tlbi_nh_vaa(iova, leaf=False),
    "NH_ASID": lambda asid, iova: tlbi_nh_asid(asid),
    "NH_ALL": lambda asid, iova: tlbi_nh_all(),
    "NSNH_ALL": lambda asid, iova: tlbi_nsnh_all(),
}


@pytest.mark.covers("INV-01")
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=with_ranges) for name in OF_A_PAGE),
        pytest.param("NH_VA-leaf", marks=without_ranges, id="NH_VA-leaf-without-ranges"),
    ],
)
def test_a_page(guest: Guest, probe: FaultSource, name: str) -> None:
    mapped = Mapped.of(guest, probe, 1)
    assert mapped.faulting([0]) == []
    mapped.pages.unmap(0)
    mapped.check_forgotten([0], OF_A_PAGE[name](mapped.tables.asid, mapped.pages.iova(0)))


@pytest.mark.covers("INV-01")
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=with_ranges) for name in OF_A_TABLE),
        pytest.param("NH_VA", marks=without_ranges, id="NH_VA-without-ranges"),
    ],
)
def test_a_page_whose_tables_are_gone(guest: Guest, probe: FaultSource, name: str) -> None:
    mapped = Mapped.of(guest, probe, 1)
    assert mapped.faulting([0]) == []
    mapped.pages.unmap_table()
    mapped.check_forgotten([0], OF_A_TABLE[name](mapped.tables.asid, mapped.pages.iova(0)))


@pytest.mark.covers("INV-01")
@pytest.mark.guest(guest_with("on"), freshness=Freshness.SHARED)
@pytest.mark.parametrize(
    ("count", "any_asid"),
    [
        *((count, False) for count in (1, 2, 31, 32, 62, 64, 96, 256, 512)),
        *((count, True) for count in (1, 2, 96, 512)),
    ],
)
def test_a_range_of_pages(guest: Guest, probe: FaultSource, count: int, any_asid: bool) -> None:
    """All pages of a range are forgotten, the first and the last too."""
    mapped = Mapped.of(guest, probe, count)
    some = sorted({0, count // 2, count - 1})
    assert mapped.faulting(some) == []
    mapped.pages.unmap(0, count)
    asid, first = mapped.tables.asid, mapped.pages.iova(0)
    one = tlbi_nh_vaa(first, pages=count) if any_asid else tlbi_nh_va(asid, first, pages=count)
    mapped.check_forgotten(some, one)


@pytest.mark.covers("INV-01")
@pytest.mark.guest(guest_with("on"), freshness=Freshness.SHARED)
@pytest.mark.parametrize("any_asid", [False, True], ids=["of-an-ASID", "of-any"])
@pytest.mark.parametrize("count", [2, 96, 512])
def test_a_range_of_pages_whose_tables_are_gone(
    guest: Guest, probe: FaultSource, count: int, any_asid: bool
) -> None:
    mapped = Mapped.of(guest, probe, count)
    some = sorted({0, count // 2, count - 1})
    assert mapped.faulting(some) == []
    mapped.pages.unmap_table()
    asid, first = mapped.tables.asid, mapped.pages.iova(0)
    if any_asid:
        one = tlbi_nh_vaa(first, leaf=False, pages=count)
    else:
        one = tlbi_nh_va(asid, first, leaf=False, pages=count)
    mapped.check_forgotten(some, one)


@pytest.mark.covers("INV-01")
@pytest.mark.guest(guest_with("on"), freshness=Freshness.SHARED)
def test_pages_beside_a_range_are_used_on(guest: Guest, probe: FaultSource) -> None:
    """The control of the tests above: a page that stays mapped does not fault after a command for
    its neighbours."""
    mapped = Mapped.of(guest, probe, 6)
    assert mapped.faulting(range(6)) == []
    mapped.pages.unmap(2, 2)
    command = tlbi_nh_va(mapped.tables.asid, mapped.pages.iova(2), pages=2)
    carry_out(guest, mapped.tables.queue, command)
    assert mapped.faulting(range(6)) == [2, 3]


@pytest.mark.covers("INV-01")
@pytest.mark.guest(guest_with("on"), freshness=Freshness.SHARED)
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200])
def test_a_batch_of_commands(guest: Guest, probe: FaultSource, count: int) -> None:
    """None of many commands that are given at once is left out, at the ends of what the kernel
    takes together neither."""
    mapped = Mapped.of(guest, probe, count)
    some = sorted({0, count // 2, count - 1})
    assert mapped.faulting(some) == []
    mapped.pages.unmap(0, count)
    asid = mapped.tables.asid
    batch = [tlbi_nh_va(asid, mapped.pages.iova(number)) for number in range(count)]
    mapped.check_forgotten(some, *batch)
