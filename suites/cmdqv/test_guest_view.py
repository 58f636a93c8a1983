"""A guest finds the CMDQV of each of its SMMUs, and its queues are served by the hardware."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.devices.source import FaultSource
from harness.errors import ProductError
from harness.expectation import only
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.faults.guest_tables import GuestTables
from harness.fixtures.guests import WITH_CMDQV, with_cmdqv
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.host import huge_pages
from harness.host.ability import ANY, PROBE
from harness.host.host import Host, Silicon
from harness.smmu.cmdqv import ENABLE, VINTF_PAGES, Config, Page0
from harness.smmu.commands import COMMAND_BYTES, Opcode, opcode
from harness.smmu.events import EventType
from harness.smmu.iort import smmu_identifiers
from harness.smmu.klog import logged_events
from harness.smmu.trace import Trace, TraceEvent
from harness.smmu.vevents import QueueType
from harness.waiting import wait_for

SMMU = SmmuSpec(devices=(ANY,), properties=(("cmdqv", "on"),))
IN_HUGE_PAGES = GuestSpec(smmus=(SMMU,), huge_pages=True)
#: The PARAM register of QEMU's CMDQV: 16 StreamIDs, 1 VINTF, 2 VCMDQs, version 1.
PARAM = 0x4011
#: QEMU writes these trace lines when a guest's commands do not go straight to the hardware.
EXITS = (TraceEvent.INVALIDATE_CACHE, TraceEvent.WRITE_VCMDQ_PAGE0)

pytestmark = [
    pytest.mark.needs("cmdqv"),
    pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED),
]


def identifiers(guest: Guest) -> list[int]:
    """Return the identifiers of the SMMUs in the guest's IORT."""
    return smmu_identifiers(guest.run("cat /sys/firmware/acpi/tables/IORT").data)


def uids(guest: Guest) -> list[int]:
    """Return the _UID of each CMDQV in the guest's DSDT."""
    return [
        int(word) for word in guest.run("cat /sys/bus/acpi/devices/NVDA200C:*/uid").text.split()
    ]


@pytest.mark.covers("CQV-01")
def test_the_guest_finds_it_beside_its_smmu(guest: Guest) -> None:
    assert uids(guest) == identifiers(guest)
    assert "found companion CMDQV device: NVDA200C:00" in guest.kernel_log("companion")
    cmdqv = GuestCmdqv(guest)
    for queue in range(2):
        assert f"entries for vcmdq{queue}" in guest.kernel_log("vcmdq")
        assert cmdqv.read(cmdqv.page0(queue, Page0.STATUS)) & ENABLE


@pytest.mark.covers("CQV-05")
def test_queues_fit_into_a_page_of_the_guests_memory(guest: Guest, host: Host) -> None:
    """The guest's memory is made of pages of the host's kernel. A page of 4 KiB holds 256 commands
    of 16 bytes."""
    page = int(host.connection.run(["python3", "-c", "import mmap; print(mmap.PAGESIZE)"]).text)
    said = guest.kernel_log("entries for vcmdq")
    assert said.count(f"allocated {page // COMMAND_BYTES} entries") == 2


@pytest.mark.covers("CQV-06")
def test_the_event_queue_comes_with_the_viommu(guest: Guest) -> None:
    """QEMU allocates the CMDQV's vEVENTQ right after the vIOMMU, before the guest runs."""
    trace = guest.trace()
    allocated = [QueueType.TEGRA241_CMDQV, QueueType.ARM_SMMUV3]
    assert trace.numbers(TraceEvent.ALLOC_EVENTQ, "type") == allocated
    of_cmdqv, of_smmu = trace.named(TraceEvent.ALLOC_EVENTQ)
    assert trace.first(TraceEvent.ALLOC_VIOMMU) in trace.before(of_cmdqv)
    # The SMMU's own vEVENTQ is allocated when the guest enables it: after the first vDEVICE.
    vdevice = trace.first(TraceEvent.ALLOC_VDEV)
    assert vdevice in trace.after(of_cmdqv)
    assert vdevice in trace.before(of_smmu)


@pytest.mark.covers("CQV-04")
def test_commands_reach_the_hardware_without_qemu(
    guest: Guest, write_blocks: Callable[[int, int], None]
) -> None:
    cmdqv, before = GuestCmdqv(guest), guest.trace_size()
    for cpu in range(2):
        prod = cmdqv.read(cmdqv.page0(cpu, Page0.PROD))
        write_blocks(cpu, 16)  # CPU n issues its commands to logical queue n
        cmdqv.wait_done(cpu)
        given = {opcode(low) for low, _ in cmdqv.given(cpu, prod)}
        assert {Opcode.TLBI_NH_VA, Opcode.SYNC} <= given
    assert guest.trace(before).named(*EXITS).names == []


@pytest.mark.covers("CQV-04")
@pytest.mark.needs("cmdqv-model")
def test_the_hardware_has_what_the_guest_commands(
    guest: Guest, silicon: Silicon, write_blocks: Callable[[int, int], None]
) -> None:
    before = silicon.count()
    for cpu in range(2):
        write_blocks(cpu, 16)
    done = silicon.commands(before)
    assert {(lvcmdq, opcode(low)) for _, lvcmdq, low, _ in done} == {
        (lvcmdq, kind) for lvcmdq in range(2) for kind in (Opcode.TLBI_NH_VA, Opcode.SYNC)
    }


def hardware_accesses(trace: Trace, queue: int) -> list[bool]:
    """Return, for each trapped access to a queue's page 0, whether it went to the hardware."""
    accesses = trace.named(TraceEvent.READ_VCMDQ_PAGE0, TraceEvent.WRITE_VCMDQ_PAGE0)
    return ["(hw)" in line.text for line in accesses if f"vcmdq[{queue}]" in line.text]


@pytest.mark.covers("CQV-12")
@pytest.mark.guest(WITH_CMDQV)
def test_page_0_is_the_caches_until_there_is_a_hardware_queue(guest: Guest) -> None:
    """QEMU serves trapped accesses to page 0 from its cache until it has allocated the hardware
    queue, and from the hardware afterwards. A restart frees the queue: no other test has restarted
    this guest."""
    trace = guest.trace()
    allocated = trace.named(TraceEvent.ALLOC_HW_QUEUE)
    for queue in range(2):
        mine = [line for line in allocated if line.number("index") == queue]
        assert mine, f"queue {queue} was not allocated"
        before = hardware_accesses(trace.before(mine[0]), queue)
        after = hardware_accesses(trace.after(mine[0]), queue)
        assert before + after, "the driver programmed the queue past QEMU"
        assert not any(before)
        assert all(after)
    # The queue is enabled now: the trapped page reads the same as the page mapped into the guest.
    cmdqv, mark = GuestCmdqv(guest), guest.trace_size()
    direct = cmdqv.read(0x1_0000 + Page0.CONS)
    assert direct == cmdqv.read(cmdqv.page0(0, Page0.CONS))
    seen = only("trapped reads", guest.trace(mark).texts(TraceEvent.READ_VCMDQ_PAGE0))
    assert "direct (hw)" in seen


@pytest.mark.covers("CQV-05")
@pytest.mark.needs("huge-pages")
@pytest.mark.long
@pytest.mark.guest(IN_HUGE_PAGES)
def test_queues_are_larger_in_larger_pages(host: Host, fleet: Fleet) -> None:
    """When the guest's memory is made of pages of 2 MiB, a queue has 131072 commands."""
    with huge_pages.set_aside(host.session, IN_HUGE_PAGES.memory_mib // huge_pages.MIB):
        try:
            with fleet.guests([IN_HUGE_PAGES], Freshness.COLD) as (running,):
                said = running.kernel_log("entries for vcmdq")
                assert said.count("allocated 131072 entries") == 2
        finally:
            fleet.clear()


@pytest.mark.covers("CQV-17")
@pytest.mark.guest(GuestSpec(smmus=(SMMU, SMMU)))
def test_several_smmus_have_one_each(guest: Guest) -> None:
    """Each SMMU has a CMDQV of its own, named by the SMMU's IORT identifier."""
    assert uids(guest) == identifiers(guest) == [1, 2]
    for index in range(2):
        cmdqv = GuestCmdqv(guest, index)
        assert cmdqv.read(Config.PARAM) == PARAM
        assert cmdqv.read(Config.STATUS) == ENABLE
        for queue in range(2):
            assert cmdqv.read(Config.CMDQ_ALLOC + 4 * queue) == 1 | queue << 1
        cmdqv.write(Config.VINTF_INT_MASK, 0x55)
        assert cmdqv.read(Config.VINTF_INT_MASK) == 0x55
        cmdqv.write(Config.VINTF_INT_MASK, 0)


@pytest.mark.covers("CQV-16")
@pytest.mark.guest(with_cmdqv(PROBE), freshness=Freshness.SHARED)
def test_page_0_is_the_guests_and_no_devices(guest: Guest, host: Host, probe: FaultSource) -> None:
    """Page 0 is mapped into the guest but not into the IOAS: a device's DMA to it raises a stage-2
    fault, which the host logs and the guest does not see."""
    assert guest.trace().count(TraceEvent.VIOMMU_MMAP) == 1
    source, queue = probe.in_kernels_domain(GuestTables.MAPPED.offset), guest.event_queue()
    GuestTables(guest, queue, source.vsid).install_windows()
    page0 = GuestTables.DEVICES.iova + GuestCmdqv(guest).base + VINTF_PAGES
    mark, before = queue.mark(), host.kernel_log_time()
    source.perform(source.burst(1, page0))
    logged = wait_for(
        "the host to log the fault",
        lambda: logged_events(host.kernel_log(before)),
        deadline=20,
        error=ProductError,
    )
    record, sid = logged[0].record, host.stream_id(source.assigned.host_bdf)
    assert (record.type, record.s2, record.sid) == (EventType.F_TRANSLATION, True, sid)
    assert record.input_addr == page0
    assert queue.since(mark) == []
