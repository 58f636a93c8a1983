"""The vEVENTQ is the same whether an SMMU's first device is plugged before or after the guest's
driver enabled its queue."""

from __future__ import annotations

import pytest

from harness.devices import source_of
from harness.expectation import only
from harness.guest import description
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.guest.hotplug import plug, wait_ready
from harness.host.ability import WRITER, Ability
from harness.host.host import Host
from harness.host.probes import veventq_allocations
from harness.smmu.trace import TraceEvent
from harness.smmu.vevents import QueueType

#: What a hot-plug makes of a CMDQV is tested in suites/cmdqv.
SMMU = SmmuSpec(hot=(WRITER,), properties=(("cmdqv", "off"),))
EMPTY = GuestSpec(smmus=(SMMU,))
HELD = GuestSpec(smmus=(SMMU,), paused=True)


def check_state(guest: Guest) -> None:
    """Check the state that both orders must end in: one vEVENTQ, one vIOMMU, events that arrive."""
    trace = guest.trace()
    allocation = only("allocations", trace.event_queues(QueueType.ARM_SMMUV3))
    assert allocation.succeeded, "the ioctl failed"
    assert trace.count(TraceEvent.ALLOC_VIOMMU) == 1
    writer, queue = source_of(guest, guest.device(WRITER), Ability.WRITE), guest.event_queue()
    mark = queue.mark()
    dma = writer.burst(4)
    writer.perform(dma)
    queue.expect(writer.expected(dma), mark)


@pytest.mark.covers("VEQ-03")
@pytest.mark.guest(EMPTY)
def test_the_first_hot_plug_allocates(guest: Guest) -> None:
    assert guest.event_queue().enabled, "the guest's driver did not enable its queue"
    assert guest.trace().event_queues(QueueType.ARM_SMMUV3).lines == ()
    plug(guest, guest.device(WRITER))
    check_state(guest)


@pytest.mark.covers("VEQ-04")
@pytest.mark.guest(HELD)
def test_a_hot_plug_before_the_driver_allocates_later(guest: Guest) -> None:
    device = guest.device(WRITER)
    guest.monitor.execute("device_add", **description.device_properties(device))
    assert not guest.event_queue().enabled
    trace = guest.trace()
    assert trace.count(TraceEvent.ALLOC_VIOMMU) > 0
    assert trace.event_queues(QueueType.ARM_SMMUV3).lines == ()
    guest.monitor.execute("cont")
    guest.wait_ready()
    wait_ready(guest, device)
    check_state(guest)


@pytest.mark.covers("VEQ-03", "VEQ-04")
@pytest.mark.needs("kprobe")
@pytest.mark.parametrize("spec", [EMPTY, HELD], ids=["after", "before"])
def test_either_order_gives_the_guests_depth(fleet: Fleet, host: Host, spec: GuestSpec) -> None:
    with veventq_allocations(host.session) as seen:
        with fleet.guests([spec], Freshness.COLD) as (guest,):
            if spec.paused:
                properties = description.device_properties(guest.device(WRITER))
                guest.monitor.execute("device_add", **properties)
                guest.monitor.execute("cont")
                guest.wait_ready()
            else:
                plug(guest, guest.device(WRITER))
            entries = guest.event_queue().geometry().entries
        of_smmu = [hit for hit in seen() if hit["type"] == QueueType.ARM_SMMUV3]
        assert of_smmu == [{"type": QueueType.ARM_SMMUV3, "depth": entries}]
