"""The host does not allocate the hardware queue that a guest asks for: the guest is told, and can
ask again."""

from __future__ import annotations

import errno
import os

import pytest

from harness.boundary.client import CMDQV, Boundary
from harness.boundary.on_host.rules import Call, FailCall
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.fixtures.guests import WITH_CMDQV
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.ability import DISK
from harness.smmu.cmdqv import ENABLE, Page0
from harness.steps import step
from suites.cmdqv import traffic
from suites.cmdqv.queues import QUEUES, enabled, failed

#: What the kernel answers for a ring that is not contiguous, one of a wrong size, one before its
#: predecessor, and without memory for it (drivers/iommu/iommufd/viommu.c, tegra241-cmdqv.c).
ERRORS = (errno.EFAULT, errno.EINVAL, errno.EIO, errno.ENOMEM)

pytestmark = [
    pytest.mark.needs("cmdqv"),
    pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED),
]


def restart_without_a_queue(guest: Guest, boundary: Boundary, error: int) -> str:
    """Restart a guest, whose first request for a hardware queue then fails. Return what QEMU says
    meanwhile."""
    said = len(guest.qemu_messages())
    with step(f"restart without a queue: {os.strerror(error)}"):
        boundary.apply(FailCall(error, Call.HW_QUEUE_ALLOC), queue=CMDQV)
        guest.monitor.execute("system_reset")
        guest.wait_ready()
    return guest.qemu_messages()[said:]


@pytest.mark.covers("CQV-19")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_guest_is_told_and_a_later_set_up_works(guest: Guest, boundary: Boundary) -> None:
    for error in ERRORS:
        said = restart_without_a_queue(guest, boundary, error)
        assert f"IOMMU_HW_QUEUE_ALLOC failed: {os.strerror(error)}" in said
        cmdqv = GuestCmdqv(guest)
        assert failed(cmdqv, 0)
        assert not cmdqv.read(cmdqv.trapped(0, Page0.STATUS)) & ENABLE
        assert "VCMDQ0/LVCMDQ0: failed to enable" in guest.kernel_log("VCMDQ0")

    before = len(guest.qemu_messages())
    guest.monitor.execute("system_reset")
    guest.wait_ready()
    assert enabled(GuestCmdqv(guest))
    assert not failed(GuestCmdqv(guest), 0)
    for queue in QUEUES:
        traffic.write_blocks(guest, queue, 4)
    assert guest.qemu_messages()[before:] == ""


@pytest.mark.covers("CQV-19")
@pytest.mark.known_defect("CQV-19", symptom="the guest has no SMMU")
def test_the_guest_does_with_the_smmus_own_queue(guest: Guest, boundary: Boundary) -> None:
    """A CMDQV that cannot be used is no reason to leave devices without an SMMU."""
    restart_without_a_queue(guest, boundary, errno.EFAULT)
    smmus = guest.run("ls /sys/class/iommu").text.split()
    assert smmus, f"the guest has no SMMU: {guest.kernel_log('arm-smmu-v3')[-1000:]}"
    assert guest.run(f"test -e {guest.device(DISK).sysfs}/iommu_group", check=False).status == 0
    traffic.write_blocks(guest, 0, 4)
