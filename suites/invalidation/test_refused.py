"""An invalidation that the host's kernel refuses is an illegal command to the guest, whose driver
goes on; nobody else is disturbed."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from harness.boundary.client import Boundary, behind_boundary
from harness.boundary.on_host.rules import Call, RefuseInvalidation
from harness.devices import source
from harness.devices.source import FaultSource
from harness.errors import ProductError
from harness.faults.command_queue import carry_out
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.ability import PROBE, Ability
from harness.host.host import Host
from harness.smmu.commands import Command, tlbi_nh_asid, tlbi_nh_va
from harness.smmu.registers import GERROR, GERRORN
from harness.smmu.trace import TraceEvent
from suites.invalidation.mapped import Mapped

PLAIN = GuestSpec(smmus=(SmmuSpec(devices=(PROBE,), properties=(("cmdqv", "off"), ("ril", "on"))),))
GUEST = behind_boundary(PLAIN, watches=[Call.HWPT_INVALIDATE])

#: Commands that no SMMU of the guest's kind defines: a bit that is RES0, a second word that is, and
#: the fields of a range (NUM, TTL, TG) in combinations that are reserved (IHI 0070, section 4.4).
MALFORMED: dict[str, Callable[[int, int], Command]] = {
    "RES0-bit": lambda asid, iova: (tlbi_nh_asid(asid)[0] | 1 << 8, 0),
    "RES0-word": lambda asid, iova: (tlbi_nh_asid(asid)[0], iova),
    "NUM-without-TG": lambda asid, iova: (tlbi_nh_va(asid, iova)[0] | 1 << 12, iova),
    "TTL-without-TG": lambda asid, iova: (tlbi_nh_va(asid, iova)[0], iova | 3 << 8),
    "TG-without-NUM-or-TTL": lambda asid, iova: (tlbi_nh_va(asid, iova)[0], iova | 1 << 10),
}


def told(guest: Guest) -> int:
    """Return how often the guest's driver was told that a command is illegal."""
    return guest.kernel_log("CMDQ error").count("Illegal command")


def check_told_once(guest: Guest, before: int) -> None:
    """Check that the guest's driver was told of one more error than `before`, and has acknowledged
    it."""
    assert told(guest) == before + 1
    queue = guest.event_queue()
    assert queue.register(GERROR) == queue.register(GERRORN)


@pytest.mark.covers("INV-02")
@pytest.mark.guest(GUEST)
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOMEM], ids=errno.errorcode.get)
def test_the_guest_is_told_and_goes_on(
    guest: Guest, probe: FaultSource, boundary: Boundary, error: int
) -> None:
    mapped, before = Mapped.of(guest, probe, 1), told(guest)
    assert mapped.faulting([0]) == []
    mapped.pages.unmap(0)
    invalidation = tlbi_nh_va(mapped.tables.asid, mapped.pages.iova(0))
    boundary.apply(RefuseInvalidation(errno=error))
    carry_out(guest, mapped.tables.queue, invalidation)
    check_told_once(guest, before)
    assert "IOMMU_HWPT_INVALIDATE failed" in guest.qemu_messages()
    mapped.check_forgotten([0], invalidation)
    check_told_once(guest, before)


@pytest.mark.covers("INV-02")
@pytest.mark.guest(GUEST, GUEST)
def test_another_guest_is_undisturbed(guests: list[Guest], host: Host) -> None:
    refused, other = guests
    mapped = Mapped.of(other, source(other, Ability.REACH), 1)
    before, log_time = [told(guest) for guest in guests], host.kernel_log_time()
    assert mapped.faulting([0]) == []
    mapped.pages.unmap(0)
    Boundary(refused).apply(RefuseInvalidation())
    carry_out(refused, refused.event_queue(), tlbi_nh_asid(1))
    check_told_once(refused, before[0])
    mapped.check_forgotten([0], tlbi_nh_va(mapped.tables.asid, mapped.pages.iova(0)))
    assert told(other) == before[1]
    assert "IOMMU_HWPT_INVALIDATE failed" not in other.qemu_messages()
    assert "CMDQ error" not in host.kernel_log(log_time)


@pytest.mark.covers("INV-02")
@pytest.mark.known_defect("INV-02", symptom="the host's kernel has passed on")
@pytest.mark.guest(PLAIN, freshness=Freshness.SHARED)
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_command_ends_at_the_kernel(
    guest: Guest, host: Host, probe: FaultSource, name: str
) -> None:
    """An SMMU may stop at such a command, and all guests and the host share the queue that it would
    be in. The commands around it are carried out."""
    mapped, log_time = Mapped.of(guest, probe, 2), host.kernel_log_time()
    assert mapped.faulting([0, 1]) == []
    mapped.pages.unmap(0, 2)
    asid, start, before = mapped.tables.asid, guest.trace_size(), told(guest)
    pages = [tlbi_nh_va(asid, mapped.pages.iova(number)) for number in range(2)]
    malformed = MALFORMED[name](asid, mapped.pages.iova(0))
    carry_out(guest, mapped.tables.queue, pages[0], malformed, pages[1])
    done = [line.succeeded for line in guest.trace(start).named(TraceEvent.INVALIDATE_CACHE)]
    if done == [True] * 3:
        raise ProductError(f"the host's kernel has passed on {malformed[0]:#x} {malformed[1]:#x}")
    assert done == [True, False, True]
    check_told_once(guest, before)
    assert mapped.faulting([0, 1]) == [0, 1]
    assert "CMDQ error" not in host.kernel_log(log_time)
