"""One faulting DMA gives one exact event in the guest, in QEMU's trace and in the kernel's log, or
none in the guest if the fault is the host's."""

from __future__ import annotations

import pytest

from harness.devices import fault_source
from harness.devices.dma import ACCESS_BYTES, DOORBELLS, Direction, Dma
from harness.devices.edu import Edu
from harness.errors import ProductError
from harness.faults.guest_tables import GuestTables, Window
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.host import Host
from harness.smmu import trace
from harness.smmu.events import EventRecord, EventType
from harness.smmu.klog import logged_events
from harness.waiting import wait_for

IOVA = 0x12_3456_7000

CASES = [
    ("edu", Direction.READ),
    ("edu", Direction.WRITE),
    ("iommu-testdev", Direction.WRITE),  # an iommu-testdev cannot read through the IOMMU
]


@pytest.mark.covers("VEQ-07", "VEQ-09", "VEQ-17")
@pytest.mark.parametrize(("role", "direction"), CASES, ids=lambda v: getattr(v, "value", v))
def test_record_is_exact(guest: Guest, host: Host, role: str, direction: Direction) -> None:
    device = fault_source(guest, role)
    vsid = device.vsid
    queue = guest.event_queue()
    mark, trace_start = queue.mark(), guest.trace_size()
    expected = EventRecord.stage1_fault(
        EventType.F_TRANSLATION, sid=vsid, input_addr=IOVA, rnw=direction is Direction.READ
    )

    device.perform(Dma(IOVA, ACCESS_BYTES, direction))

    queue.expect([expected], mark)
    assert guest.wait_propagated(1, trace_start) == [trace.PropagatedEvent("F_TRANSLATION", vsid)]
    assert logged_events(guest.kernel_log("arm-smmu-v3"))[-1].record == expected
    host_sid = host.stream_id(device.assigned.host_bdf)
    assert host_sid != vsid, "the lab must number the buses of host and guest differently"


WINDOWS = [
    (EventType.F_TRANSLATION, GuestTables.UNMAPPED, Direction.READ),
    (EventType.F_TRANSLATION, GuestTables.UNMAPPED, Direction.WRITE),
    (EventType.F_PERMISSION, GuestTables.READ_ONLY, Direction.WRITE),
    (EventType.F_ACCESS, GuestTables.NOT_ACCESSED, Direction.READ),
    (EventType.F_ACCESS, GuestTables.NOT_ACCESSED, Direction.WRITE),
    (EventType.F_ADDR_SIZE, GuestTables.OUT_OF_RANGE, Direction.READ),
    (EventType.F_ADDR_SIZE, GuestTables.OUT_OF_RANGE, Direction.WRITE),
]


@pytest.mark.covers("VEQ-08", "VEQ-17")
@pytest.mark.parametrize(
    ("kind", "window", "direction"),
    WINDOWS,
    ids=[f"{kind.name}-{direction.value}" for kind, _, direction in WINDOWS],
)
def test_translation_fault_types(
    guest: Guest, edu: Edu, kind: EventType, window: Window, direction: Direction
) -> None:
    queue = guest.event_queue()
    GuestTables(guest, queue, edu.vsid).install_windows()
    mark, trace_start = queue.mark(), guest.trace_size()
    dma = Dma(window.iova, ACCESS_BYTES, direction)

    edu.perform(dma)

    queue.expect(dma.expected(kind, edu.vsid), mark)
    forwarded = guest.wait_propagated(1, trace_start)
    assert forwarded == [trace.PropagatedEvent(kind.name, edu.vsid)]


@pytest.mark.covers("VEQ-08")
def test_mapped_window_does_not_fault(guest: Guest, edu: Edu) -> None:
    """The control of the tests above: a DMA to the valid window of the same tables raises no
    event."""
    queue = guest.event_queue()
    GuestTables(guest, queue, edu.vsid).install_windows()
    mark = queue.mark()

    edu.perform(Dma(GuestTables.MAPPED.iova, ACCESS_BYTES, Direction.READ))

    # Events keep their order: once the event of this DMA has arrived, an earlier one would have.
    last = Dma(IOVA, ACCESS_BYTES, Direction.WRITE)
    edu.perform(last)
    queue.expect(last.expected(EventType.F_TRANSLATION, edu.vsid), mark)


@pytest.mark.covers("VEQ-08", "VEQ-17")
def test_bad_context_descriptor(guest: Guest, edu: Edu) -> None:
    queue = guest.event_queue()
    GuestTables(guest, queue, edu.vsid).break_context_descriptor()
    mark, trace_start = queue.mark(), guest.trace_size()

    edu.perform(Dma(IOVA, ACCESS_BYTES, Direction.WRITE))

    vsid = edu.vsid
    queue.expect([EventRecord.configuration_fault(EventType.C_BAD_CD, sid=vsid)], mark)
    assert guest.wait_propagated(1, trace_start) == [trace.PropagatedEvent("C_BAD_CD", vsid)]


PASSTHROUGH = GuestSpec(smmus=(SmmuSpec(devices=("edu",)),), append="iommu.passthrough=1")


@pytest.mark.covers("VEQ-10")
@pytest.mark.parametrize(
    "iova",
    [
        pytest.param(1 << 38, id="no-stage-1", marks=pytest.mark.guest(PASSTHROUGH)),
        pytest.param(DOORBELLS.stop - ACCESS_BYTES, id="no-doorbell"),
    ],
)
def test_stage2_fault_stays_with_the_host(guest: Guest, host: Host, edu: Edu, iova: int) -> None:
    """A DMA to an address that is neither memory nor a doorbell faults in stage 2, which only the
    host sees. It gets past stage 1 because stage 1 is off, or because the address is in the range
    that stage 1 leaves to the host's doorbells."""
    queue = guest.event_queue()
    mark, trace_start = queue.mark(), guest.trace_size()
    before = host.kernel_log_time()

    edu.perform(Dma(iova, ACCESS_BYTES, Direction.WRITE))

    logged = wait_for(
        "the host's kernel to log the fault",
        lambda: logged_events(host.kernel_log(before)),
        deadline=10,
        error=ProductError,
    )
    record = logged[0].record
    host_sid = host.stream_id(edu.assigned.host_bdf)
    assert (record.type, record.s2, record.sid) == (EventType.F_TRANSLATION, True, host_sid)
    assert record.input_addr == iova
    assert queue.count_since(mark) == 0
    assert trace.propagated(guest.trace(trace_start)) == []
