"""Each logical queue works, in whatever order a guest sets them up, changes them and gives them
back.

Hardware demands that queues are given to the interface in ascending order, and taken from it in
descending order (drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c). When a queue gets its ring is the
guest's own affair.
"""

from __future__ import annotations

import pytest

from harness.faults.guest_cmdqv import GuestCmdqv
from harness.fixtures.guests import WITH_CMDQV
from harness.guest.guest import Guest
from suites.cmdqv import traffic
from suites.cmdqv.queues import QUEUES, check_works, enabled, failed, hardware_queues, new_ring

pytestmark = [
    pytest.mark.needs("cmdqv"),
    pytest.mark.guest(WITH_CMDQV),
]


def check_nothing_refused(guest: Guest, since: int = 0) -> None:
    """Check that QEMU does not say, from a position in its messages on, that the host did not
    allocate or free a queue."""
    said = guest.qemu_messages()[since:].splitlines()
    refused = [one for one in said if "IOMMU_HW_QUEUE_ALLOC" in one or "Failed to free" in one]
    assert not refused, "\n".join(refused)


@pytest.mark.covers("CQV-20")
@pytest.mark.known_defect("CQV-20", symptom=r"Failed to free id: \d+ Device or resource busy")
def test_the_first_queue_gets_another_ring(guest: Guest) -> None:
    cmdqv, ring = GuestCmdqv(guest), new_ring(guest)
    second = cmdqv.ring(1)
    cmdqv.set_up(0, ring)
    check_nothing_refused(guest)
    assert hardware_queues(guest) == {0: ring.address, 1: second.address}
    assert not failed(cmdqv, 0)
    for queue in QUEUES:
        check_works(guest, queue)


@pytest.mark.covers("CQV-20")
def test_the_second_queue_gets_another_ring(guest: Guest) -> None:
    """The control of the test above: no other queue depends on this one."""
    cmdqv, ring = GuestCmdqv(guest), new_ring(guest)
    first = cmdqv.ring(0)
    cmdqv.set_up(1, ring)
    check_nothing_refused(guest)
    assert hardware_queues(guest) == {0: first.address, 1: ring.address}
    for queue in QUEUES:
        check_works(guest, queue)


@pytest.mark.covers("CQV-20")
@pytest.mark.known_defect("CQV-20", symptom="IOMMU_HW_QUEUE_ALLOC failed: Input/output error")
def test_the_second_queue_gets_its_ring_first(guest: Guest) -> None:
    cmdqv, rings = GuestCmdqv(guest), [new_ring(guest) for _ in QUEUES]
    for queue in reversed(QUEUES):
        cmdqv.release(queue)
    assert hardware_queues(guest) == {}
    for queue in QUEUES:
        cmdqv.map(queue)
    for queue in reversed(QUEUES):
        cmdqv.set_up(queue, rings[queue])
    check_nothing_refused(guest)
    assert hardware_queues(guest) == {queue: rings[queue].address for queue in QUEUES}
    for queue in QUEUES:
        check_works(guest, queue)


@pytest.mark.covers("CQV-20")
@pytest.mark.known_defect("CQV-20", symptom="IOMMU_HW_QUEUE_ALLOC failed: File exists")
def test_a_restart_repairs_what_was_released_in_the_wrong_order(guest: Guest) -> None:
    cmdqv = GuestCmdqv(guest)
    for queue in QUEUES:
        cmdqv.release(queue)
    before = len(guest.qemu_messages())
    guest.monitor.execute("system_reset")
    guest.wait_ready()
    check_nothing_refused(guest, before)
    assert enabled(GuestCmdqv(guest))
    for queue in QUEUES:
        traffic.write_blocks(guest, queue, 4)
