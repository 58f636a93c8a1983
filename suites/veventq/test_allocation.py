"""QEMU allocates the vEVENTQ once, when the guest enables its queue, and as deep as that queue."""

from __future__ import annotations

import pytest

from harness.expectation import only
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.host.ability import ANY
from harness.host.host import Host
from harness.host.probes import veventq_allocations
from harness.smmu.trace import TraceEvent
from harness.smmu.vevents import QueueType

ONE_DEVICE = GuestSpec(smmus=(SmmuSpec(devices=(ANY,)),))
NO_DEVICE = GuestSpec(smmus=(SmmuSpec(),))


@pytest.mark.covers("VEQ-01")
@pytest.mark.guest(ONE_DEVICE)
def test_cold_plugged_device_allocates_once(guest: Guest) -> None:
    trace = guest.trace()
    allocation = only("allocations", trace.event_queues(QueueType.ARM_SMMUV3))
    assert allocation.succeeded, "the ioctl failed"
    # The guest's driver sets EVENTQEN after its first CFGI_STE and before a device translates.
    assert trace.first(TraceEvent.ALLOC_VDEV) in trace.before(allocation)
    assert trace.first(TraceEvent.TRANSLATE_STE) in trace.after(allocation)
    assert guest.event_queue().enabled


@pytest.mark.covers("VEQ-01")
@pytest.mark.needs("kprobe")
@pytest.mark.guest(ONE_DEVICE)
def test_depth_is_the_guests_queue_size(fleet: Fleet, host: Host) -> None:
    with veventq_allocations(host.session) as seen:
        with fleet.guests([ONE_DEVICE], Freshness.COLD) as (guest,):
            entries = guest.event_queue().geometry().entries
        of_smmu = [hit for hit in seen() if hit["type"] == QueueType.ARM_SMMUV3]
        assert of_smmu == [{"type": QueueType.ARM_SMMUV3, "depth": entries}]


@pytest.mark.covers("VEQ-02")
@pytest.mark.guest(NO_DEVICE)
def test_without_a_device_nothing_is_allocated(guest: Guest) -> None:
    assert guest.event_queue().enabled, "the guest's driver did not bring the SMMU up"
    assert guest.run("ls /sys/class/iommu").text.split()
    assert [name for name in guest.trace().names if name.startswith("iommufd_")] == []


@pytest.mark.covers("VEQ-05")
def test_second_device_shares_the_queue(guest: Guest) -> None:
    trace = guest.trace()
    assert trace.count(TraceEvent.SET_IOMMU_DEVICE) == 2
    assert trace.count(TraceEvent.ALLOC_VIOMMU) == 1
    assert len(trace.event_queues(QueueType.ARM_SMMUV3).lines) == 1
