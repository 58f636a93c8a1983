"""One assigned device reaches the registers of another through nested translation, as long as the
guest has it."""

from __future__ import annotations

import pytest

from harness.devices.source import FaultSource, with_registers
from harness.errors import ProductError
from harness.faults.guest_tables import GuestTables
from harness.guest.description import AssignedDevice, GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug
from harness.guest.mmio import Mmio
from harness.host.ability import DISK, PROBE
from harness.host.host import Host
from harness.smmu.events import EventType
from harness.smmu.klog import logged_events
from harness.waiting import wait_for

GUEST = GuestSpec(smmus=(SmmuSpec(devices=(PROBE,), hot=(DISK,)),))
#: The lower half of an NVMe controller's ASQ, which it does not act on while it is disabled, and
#: the bits there that keep what is written.
ASQ, KEPT = 0x28, 0xFFFF_F000
OFFSET = GuestTables.MAPPED.offset


def bar0(guest: Guest, device: AssignedDevice) -> int:
    """Return the guest physical address of a device's BAR 0."""
    return int(guest.run(f"cat {device.sysfs}/resource").text.split()[0], 16)


@pytest.mark.covers("DATA-05")
@pytest.mark.guest(GUEST)
def test_a_device_reaches_anothers_registers(guest: Guest, host: Host, probe: FaultSource) -> None:
    peer, queue = guest.device(DISK), guest.event_queue()
    plug(guest, peer)
    with_registers(guest, peer)
    asq, registers = bar0(guest, peer) + ASQ, Mmio(guest, f"{peer.sysfs}/resource0")
    assert asq < GuestTables.MAPPED.output, "the window DEVICES leads there"
    GuestTables(guest, queue, probe.vsid).install_windows()
    source, mark = probe.in_kernels_domain(OFFSET), queue.mark()
    write = source.burst(1, GuestTables.DEVICES.iova + asq)

    # Whatever the device writes: it does not depend on what was there before.
    found = set()
    for before in (0, KEPT):
        registers.write(ASQ, before)
        assert registers.read(ASQ) & KEPT == before
        source.perform(write)
        found.add(registers.read(ASQ) & KEPT)
    assert len(found) == 1, "the register has kept what it had before"
    assert queue.since(mark) == []
    assert "P2P DMA will not work" not in guest.qemu_messages()

    eject(guest, peer)

    log_time = host.kernel_log_time()
    source.perform(write)
    logged = wait_for(
        "the host to log the fault",
        lambda: logged_events(host.kernel_log(log_time)),
        deadline=20,
        error=ProductError,
    )
    record, sid = logged[0].record, host.stream_id(probe.assigned.host_bdf)
    assert (record.type, record.s2, record.sid) == (EventType.F_TRANSLATION, True, sid)
    assert record.input_addr == write.iova
    assert queue.since(mark) == [], "the fault is the host's"
