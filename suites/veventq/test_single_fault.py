"""One faulting DMA gives one exact event in the guest, in QEMU's trace and in the kernel's log, or
none in the guest if the fault is the host's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.devices.dma import DOORBELLS, Direction
from harness.devices.source import FaultSource
from harness.errors import ProductError
from harness.expectation import expect
from harness.faults.command_queue import carry_out
from harness.faults.guest_tables import GuestTables, Window
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.host import Host
from harness.smmu import trace
from harness.smmu.access import Access
from harness.smmu.commands import cfgi_cd_all
from harness.smmu.events import EventRecord, EventType
from harness.smmu.klog import logged_events
from harness.waiting import wait_for
from suites.veventq.sources import (
    BY_REGISTERS,
    IN_TABLES,
    REACHING,
    WINDOW_OFFSET,
    directions,
    each_direction,
    in_kernels_domain,
    in_tables,
    parameters,
    smallest,
    source_by,
)

IOVA = 0x12_3456_7000


@pytest.mark.covers("VEQ-07", "VEQ-09", "VEQ-17")
@pytest.mark.parametrize(("way", "direction"), each_direction())
def test_record_is_exact(
    guest: Guest, host: Host, way: type[FaultSource], direction: Direction
) -> None:
    source, queue = source_by(guest, way), guest.event_queue()
    vsid = source.vsid
    mark, trace_start = queue.mark(), guest.trace_size()
    dma = smallest(source, IOVA, direction)
    accesses = source.expected(dma)
    assert accesses[0].record == EventRecord.stage1_fault(
        EventType.F_TRANSLATION, sid=vsid, input_addr=IOVA, rnw=direction is Direction.READ
    )
    assert source.cut or len(accesses) == 1

    source.perform(dma)

    records = queue.expect(accesses, mark)
    named = trace.PropagatedEvent("F_TRANSLATION", vsid)
    forwarded = guest.wait_propagated(len(records), trace_start)
    expect("QEMU's trace", forwarded, [named] * len(records))
    logged = [event.record for event in logged_events(guest.kernel_log("arm-smmu-v3"))]
    assert logged[:1] == records[:1]
    if host.stream_id(source.assigned.host_bdf) == vsid:
        pytest.skip("host and guest have the same StreamID for the device: it may be the host's")


WINDOWS = [
    (EventType.F_TRANSLATION, GuestTables.UNMAPPED, Direction.READ),
    (EventType.F_TRANSLATION, GuestTables.UNMAPPED, Direction.WRITE),
    (EventType.F_PERMISSION, GuestTables.READ_ONLY, Direction.WRITE),
    (EventType.F_ACCESS, GuestTables.NOT_ACCESSED, Direction.READ),
    (EventType.F_ACCESS, GuestTables.NOT_ACCESSED, Direction.WRITE),
    (EventType.F_ADDR_SIZE, GuestTables.OUT_OF_RANGE, Direction.READ),
    (EventType.F_ADDR_SIZE, GuestTables.OUT_OF_RANGE, Direction.WRITE),
]
#: How many bits output addresses have in the guest for a kind of fault, if that matters. The SMMU
#: of a Grace has 48, and so has a guest's with oas=auto: no descriptor has an address beyond that.
OAS = {EventType.F_ADDR_SIZE: "44"}


@pytest.mark.covers("VEQ-08", "VEQ-17")
@pytest.mark.parametrize(
    ("way", "kind", "window", "direction"),
    [
        parameters(
            *(one, kind, window, direction),
            name=f"{kind.name}-{direction.value}",
            oas=OAS.get(kind, "auto"),
            freshness=Freshness.SHARED,
        )
        for one in IN_TABLES
        for kind, window, direction in WINDOWS
        if direction in directions(one[1])
    ],
)
def test_translation_fault_types(
    guest: Guest, way: type[FaultSource], kind: EventType, window: Window, direction: Direction
) -> None:
    source, queue = in_tables(guest, way), guest.event_queue()
    mark, trace_start = queue.mark(), guest.trace_size()
    dma = source.burst(1, window.iova, direction)

    source.perform(dma)

    records = queue.expect(source.expected(dma, kind), mark)
    named = trace.PropagatedEvent(kind.name, source.vsid)
    forwarded = guest.wait_propagated(len(records), trace_start)
    expect("QEMU's trace", forwarded, [named] * len(records))


@pytest.mark.covers("VEQ-08")
@pytest.mark.parametrize(("way", "direction"), each_direction(IN_TABLES, Freshness.SHARED))
def test_mapped_window_does_not_fault(
    guest: Guest, way: type[FaultSource], direction: Direction
) -> None:
    """The control of the tests above: a DMA to the valid window of the same tables raises no
    event."""
    source, queue = in_tables(guest, way), guest.event_queue()
    mark = queue.mark()

    source.perform(source.burst(1, GuestTables.MAPPED.iova, direction))

    # Events keep their order: once the event of this DMA has arrived, an earlier one would have.
    last = source.burst(1, IOVA)
    source.perform(last)
    queue.expect(source.expected(last), mark)


@pytest.mark.covers("VEQ-08", "VEQ-17")
@pytest.mark.parametrize(("way", "direction"), each_direction(BY_REGISTERS))
def test_bad_context_descriptor(guest: Guest, way: type[FaultSource], direction: Direction) -> None:
    source, queue = source_by(guest, way), guest.event_queue()
    GuestTables(guest, queue, source.vsid).break_context_descriptor()
    mark, trace_start = queue.mark(), guest.trace_size()

    source.perform(source.burst(1, IOVA, direction))

    vsid = source.vsid
    records = queue.expect([EventRecord.configuration_fault(EventType.C_BAD_CD, sid=vsid)], mark)
    named = trace.PropagatedEvent("C_BAD_CD", vsid)
    forwarded = guest.wait_propagated(len(records), trace_start)
    expect("QEMU's trace", forwarded, [named] * len(records))


@pytest.mark.covers("VEQ-08")
@pytest.mark.parametrize("way", [parameters(one) for one in REACHING])
def test_nothing_is_reached_by_a_bad_context_descriptor(
    guest: Guest, way: type[FaultSource]
) -> None:
    """How many records the attempt raises is the device's: all of them are C_BAD_CD."""
    source, queue = in_tables(guest, way), guest.event_queue()
    assert source.reaches(WINDOW_OFFSET)
    GuestTables(guest, queue, source.vsid).break_context_descriptor()
    carry_out(guest, queue, cfgi_cd_all(source.vsid))
    mark = queue.mark()

    assert not source.reaches(WINDOW_OFFSET)

    record = EventRecord.configuration_fault(EventType.C_BAD_CD, sid=source.vsid)
    queue.expect([Access(record, most=queue.geometry().entries)], mark)


#: By the reason why stage 1 lets a DMA pass: the guest's kernel command line, how a source gets to
#: work there, and the DMA's IOVA, which is page aligned, as any source can have it.
PAST_STAGE1 = {
    "no-stage-1": ("iommu.passthrough=1", in_kernels_domain, 1 << 38),
    "no-doorbell": ("", in_tables, DOORBELLS.stop - 0x1000),
}


@pytest.mark.covers("VEQ-10")
@pytest.mark.parametrize(
    ("way", "made", "iova"),
    [
        parameters(one, made, iova, name=name, append=append)
        for one in IN_TABLES
        for name, (append, made, iova) in PAST_STAGE1.items()
    ],
)
def test_stage2_fault_stays_with_the_host(
    guest: Guest,
    host: Host,
    way: type[FaultSource],
    made: Callable[[Guest, type[FaultSource]], FaultSource],
    iova: int,
) -> None:
    """A DMA to an address that is neither memory nor a doorbell faults in stage 2, which only the
    host sees. It gets past stage 1 because stage 1 is off, or because the address is in the range
    that stage 1 leaves to the host's doorbells."""
    source, queue = made(guest, way), guest.event_queue()
    mark, trace_start = queue.mark(), guest.trace_size()
    before = host.kernel_log_time()

    source.perform(source.burst(1, iova))

    logged = wait_for(
        "the host's kernel to log the fault",
        lambda: logged_events(host.kernel_log(before)),
        deadline=10,
        error=ProductError,
    )
    record = logged[0].record
    host_sid = host.stream_id(source.assigned.host_bdf)
    assert (record.type, record.s2, record.sid) == (EventType.F_TRANSLATION, True, host_sid)
    assert record.input_addr == iova
    assert queue.count_since(mark) == 0
    assert trace.propagated(guest.trace(trace_start)) == []
