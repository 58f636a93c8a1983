"""Devices work each time they are plugged, and leave when the guest or the host removes them: one
or two at a time, idle or in use."""

from __future__ import annotations

import pytest

from harness import kernel_log
from harness.devices import fault_source, source_of
from harness.devices.dma import ACCESS_BYTES, UNMAPPED, Direction, Dma
from harness.devices.nvme import Disk
from harness.errors import ProductError
from harness.faults.faulty_root_port import FaultyRootPort
from harness.guest.description import AssignedDevice, GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import (
    UnplugRefusedError,
    eject,
    is_plugged,
    is_ready,
    plug,
    remove_from_host,
    unplug,
)
from harness.guest.root_port import RootPort
from harness.host import pci
from harness.host.host import Host
from harness.smmu.events import EventType
from harness.waiting import wait_for

#: One device stays plugged, so that QEMU keeps the SMMU's vIOMMU: test_rounds.py tests its end.
STORM = GuestSpec(smmus=(SmmuSpec(devices=("edu",), hot=("iommu-testdev", "nvme")),))
GUEST = GuestSpec(smmus=(SmmuSpec(devices=("iommu-testdev",), hot=("edu", "nvme")),))

#: The storm of events pauses between bursts, so that a guest with one CPU can still respond.
BURST, PAUSE_MS = 64, 10

pytestmark = pytest.mark.guest(GUEST)


def check_use(guest: Guest, device: AssignedDevice) -> None:
    """Check that a device works: its faults reach the guest exactly, or its data reads back."""
    if device.role == "nvme":
        disk = Disk(guest, device)
        written = disk.write_random(mib=1)
        assert disk.digest(mib=1) == written
        return
    one, queue = fault_source(guest, device.role), guest.event_queue()
    mark = queue.mark()
    dma = Dma(UNMAPPED, 16 * ACCESS_BYTES, Direction.WRITE)
    one.perform(dma)
    queue.expect(dma.expected(EventType.F_TRANSLATION, device.vsid), mark)


def check_unharmed(guest: Guest) -> None:
    """Check that neither the guest's kernel nor QEMU reported a problem."""
    assert guest.run(f"dmesg | grep -E '{kernel_log.BUG}'", check=False).text == ""
    assert guest.qemu_messages() == ""


@pytest.mark.covers("HOT-01")
@pytest.mark.parametrize(
    "role", ["edu", "nvme", pytest.param("iommu-testdev", marks=pytest.mark.guest(STORM))]
)
def test_plug_use_unplug_and_again(guest: Guest, role: str) -> None:
    device = guest.device(role)
    plug(guest, device)
    check_use(guest, device)
    unplug(guest, device)
    assert not is_plugged(guest, device)
    assert not is_ready(guest, device)
    plug(guest, device)
    check_use(guest, device)
    check_unharmed(guest)


@pytest.mark.covers("HOT-01")
def test_an_unplug_that_the_guest_refuses(guest: Guest) -> None:
    """A device stays plugged and usable when the guest ignores the request to unplug it. The
    guest's hot-plug driver is unbound from the port, so that nothing answers the request."""
    device = guest.device("edu")
    plug(guest, device)
    FaultyRootPort(guest, RootPort(device.smmu, device.port)).unbind_hotplug()
    with pytest.raises(UnplugRefusedError, match="the guest keeps the device"):
        unplug(guest, device, deadline=7)
    assert is_plugged(guest, device)
    check_use(guest, device)


@pytest.mark.covers("HOT-02")
@pytest.mark.guest(STORM)
def test_unplug_while_events_storm(guest: Guest) -> None:
    """A device that is unplugged during its DMA stops, and other devices continue."""
    storming, other = guest.device("iommu-testdev"), guest.device("edu")
    plug(guest, storming)
    dma = Dma(UNMAPPED, BURST * ACCESS_BYTES, Direction.WRITE)
    storm = source_of(guest, storming).command(dma, times=1_000_000, pause_ms=PAUSE_MS)
    queue = guest.event_queue()
    mark = queue.mark()
    guest.run(f"{storm} >/dev/null 2>&1 & echo $! >/tmp/storm")
    queue.wait_for(8 * BURST, mark)

    eject(guest, storming)

    # The registers of the unplugged device read as all ones, so the program that starts its DMA
    # goes on without effect.
    guest.run("kill $(cat /tmp/storm)")
    last = Dma(2 * UNMAPPED, ACCESS_BYTES, Direction.WRITE)
    fault_source(guest, other.role).perform(last)
    # Events keep their order: once this one has arrived, all earlier ones have.
    end = last.expected(EventType.F_TRANSLATION, other.vsid)
    wait_for("the other's event", lambda: queue.latest(1) == end, deadline=10, error=ProductError)
    *stormed, _ = queue.since(mark)
    assert {record.sid for record in stormed} == {storming.vsid}
    assert len(stormed) % BURST == 0, "a DMA was cut in two"
    plug(guest, storming)
    check_use(guest, storming)
    check_unharmed(guest)


@pytest.mark.covers("HOT-02")
def test_unplug_while_data_flow(guest: Guest) -> None:
    nvme = guest.device("nvme")
    plug(guest, nvme)
    disk = Disk(guest, nvme)
    guest.run(
        f"(dd if=/dev/zero of={disk.path} bs=64k count=100000 oflag=direct; echo $? >/tmp/ended) "
        ">/dev/null 2>&1 &"
    )
    wait_for("data to flow", lambda: disk.written_sectors() > 1000, deadline=10, error=ProductError)

    eject(guest, nvme)

    said = guest.run("until [ -s /tmp/ended ]; do usleep 10000; done; cat /tmp/ended").text
    assert said == "1\n", "dd did not learn that its disk is gone"
    plug(guest, nvme)
    check_use(guest, nvme)
    check_unharmed(guest)


@pytest.mark.covers("HOT-04")
@pytest.mark.parametrize("role", ["edu", "nvme"])
def test_removal_on_the_host(host: Host, guest: Guest, role: str) -> None:
    device = guest.device(role)
    plug(guest, device)
    check_use(guest, device)

    remove_from_host(guest, device)

    assert not is_plugged(guest, device)
    pci.rescan(guest.session)
    host.assign([device.host_bdf])
    plug(guest, device)
    check_use(guest, device)
    check_unharmed(guest)


@pytest.mark.covers("HOT-05")
def test_two_at_once(guest: Guest) -> None:
    both = guest.device("edu"), guest.device("nvme")
    plug(guest, *both)
    for device in both:
        check_use(guest, device)
    unplug(guest, *both)
    assert not [device for device in both if is_plugged(guest, device)]
    plug(guest, *reversed(both))
    for device in both:
        check_use(guest, device)
    check_unharmed(guest)
