"""The first record of a new queue is no loss, whatever QEMU's memory held before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.devices.source import FaultSource
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import WRITER
from harness.smmu import loss
from harness.smmu.commands import sync
from harness.smmu.loss import Report
from harness.smmu.vevents import QueueType
from suites.cmdqv.errors import CFGI_STE, wait_for_map

#: glibc fills all memory that QEMU allocates with the inverse of this byte, which is odd: a bool of
#: it is true for a compiler that looks at one bit. It gives none back to QEMU that it has kept at
#: hand, part of which it clears: see mallopt(3), M_PERTURB, and the manual's chapter on tunables.
DIRTY = (("GLIBC_TUNABLES", "glibc.malloc.perturb=164:glibc.malloc.tcache_count=0"),)


def guest_with(cmdqv: str) -> GuestSpec:
    """Return a guest in whose QEMU no allocated memory happens to be zero."""
    smmu = SmmuSpec(devices=(WRITER,), properties=(("cmdqv", cmdqv),))
    return GuestSpec(smmus=(smmu,), environment=DIRTY)


def reports(guest: Guest, kind: QueueType) -> Iterator[Report]:
    """Yield what QEMU reports of its queues of a type."""
    return (one.report for one in loss.messages(guest.qemu_messages()) if one.type == kind)


@pytest.mark.covers("LOSS-14")
@pytest.mark.guest(guest_with("off"))
def test_the_first_event_of_an_smmu(guest: Guest, writer: FaultSource) -> None:
    queue = guest.event_queue()
    mark = queue.mark()
    dma = writer.burst(1)

    writer.perform(dma)

    queue.expect(writer.expected(dma), mark)
    assert list(reports(guest, QueueType.ARM_SMMUV3)) == []


@pytest.mark.known_defect("LOSS-14", symptom=r"assert \[Lost\(count=\d+\)\] == \[\]")
@pytest.mark.covers("LOSS-14")
@pytest.mark.needs("cmdqv")
@pytest.mark.guest(guest_with("on"))
def test_the_first_error_of_a_cmdqv(guest: Guest) -> None:
    cmdqv, lvcmdq, before = GuestCmdqv(guest), 0, guest.trace_size()

    index = cmdqv.give(lvcmdq, CFGI_STE, sync())
    wait_for_map(guest, before, lvcmdq)
    cmdqv.wait_done(lvcmdq)
    cmdqv.take_back(lvcmdq, index)

    assert list(reports(guest, QueueType.TEGRA241_CMDQV)) == []
