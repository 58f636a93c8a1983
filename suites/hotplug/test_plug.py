"""Devices work each time they are plugged, and leave when the guest or the host removes them: one
or two at a time, idle or in use."""

from __future__ import annotations

import pytest

from harness import kernel_log
from harness.devices import kind, kinds, source_of
from harness.devices.dma import UNMAPPED
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
from harness.host.ability import ANY, DISK, FLOODER, WRITER, Ability, of_role
from harness.host.host import Host
from harness.smmu.access import mismatch
from harness.waiting import wait_for

#: One device stays plugged, so that QEMU keeps the SMMU's vIOMMU: test_rounds.py tests its end.
GUEST = GuestSpec(smmus=(SmmuSpec(devices=(ANY,), hot=(ANY, DISK)),))
STORM = GuestSpec(smmus=(SmmuSpec(devices=(WRITER,), hot=(FLOODER,)),))
#: A device of each kind is hot-plugged in a guest of its own, by role.
KINDS = {
    role: GuestSpec(smmus=(SmmuSpec(devices=(ANY,), hot=(of_role(role),)),)) for role in kinds()
}

#: The storm of events pauses between bursts, so that a guest with one CPU can still respond.
BURST, PAUSE_MS = 64, 10

pytestmark = pytest.mark.guest(GUEST)


def check_use(guest: Guest, device: AssignedDevice) -> None:
    """Check that a device works: its data reads back if it is a disk, else its faults reach the
    guest exactly. Of a device that can do neither it is known only that the guest has it ready."""
    able = kind(device.role)
    if Ability.DISK in able.can:
        disk = Disk(guest, device)
        written = disk.write_random(mib=1)
        assert disk.digest(mib=1) == written
    elif able.sources:
        one, queue = source_of(guest, device), guest.event_queue()
        mark = queue.mark()
        dma = one.burst(min(16, one.longest // one.unit))
        one.perform(dma)
        queue.expect(one.expected(dma), mark)


def check_unharmed(guest: Guest, *, may_say: str = "") -> None:
    """Check that neither the guest's kernel nor QEMU reported a problem. QEMU may have messages
    that contain `may_say`, if that is given."""
    assert guest.run(f"dmesg | grep -E '{kernel_log.BUG}'", check=False).text == ""
    said = guest.qemu_messages().splitlines()
    assert [line for line in said if not may_say or may_say not in line] == []


@pytest.mark.covers("HOT-01")
@pytest.mark.parametrize(
    "role",
    [pytest.param(role, marks=pytest.mark.guest(guest)) for role, guest in KINDS.items()],
)
def test_plug_use_unplug_and_again(guest: Guest, role: str) -> None:
    device = guest.device(of_role(role))
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
    device = guest.devices[1]
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
    storming, other = guest.device(FLOODER), guest.device(WRITER)
    plug(guest, storming)
    flooder = source_of(guest, storming, Ability.WRITE, Ability.FLOOD)
    storm = flooder.command(flooder.burst(BURST), times=1_000_000, pause_ms=PAUSE_MS)
    queue = guest.event_queue()
    mark = queue.mark()
    guest.run(f"({storm} & echo $! >/tmp/storm; wait $!; echo >/tmp/ended) >/dev/null 2>&1 &")
    queue.wait_for(BURST, mark)

    eject(guest, storming)

    # The program that starts the DMA may go on without effect, or have ended by itself.
    guest.run("kill $(cat /tmp/storm) 2>&-; until [ -e /tmp/ended ]; do usleep 10000; done")
    one = source_of(guest, other, Ability.WRITE)
    last = one.burst(1, 2 * UNMAPPED)
    one.perform(last)
    # Events keep their order: once this one has arrived, all earlier ones have.
    wait_for(
        "the other's event",
        lambda: not mismatch(queue.latest(1), one.expected(last), exact=queue.exact),
        deadline=10,
        error=ProductError,
    )
    *stormed, _ = queue.since(mark)
    assert {record.sid for record in stormed} == {storming.vsid}
    if queue.exact:
        assert len(stormed) % BURST == 0, "a DMA was cut in two"
    plug(guest, storming)
    check_use(guest, storming)
    check_unharmed(guest)


@pytest.mark.covers("HOT-02")
def test_unplug_while_data_flow(guest: Guest) -> None:
    device = guest.device(DISK)
    plug(guest, device)
    disk = Disk(guest, device)
    guest.run(
        f"(dd if=/dev/zero of={disk.path} bs=64k count=100000 oflag=direct; echo $? >/tmp/ended) "
        ">/dev/null 2>&1 &"
    )
    wait_for("data to flow", lambda: disk.written_sectors() > 1000, deadline=10, error=ProductError)

    eject(guest, device)

    said = guest.run("until [ -s /tmp/ended ]; do usleep 10000; done; cat /tmp/ended").text
    assert said == "1\n", "dd did not learn that its disk is gone"
    plug(guest, device)
    check_use(guest, device)
    check_unharmed(guest)


@pytest.mark.covers("HOT-04")
@pytest.mark.parametrize("number", [1, 2], ids=["any", "disk"])
def test_removal_on_the_host(host: Host, guest: Guest, number: int) -> None:
    device = guest.devices[number]
    plug(guest, device)
    check_use(guest, device)

    remove_from_host(guest, device)

    assert not is_plugged(guest, device)
    pci.rescan(guest.session)
    host.assign([device.host_bdf])
    plug(guest, device)
    check_use(guest, device)
    # The host's kernel resets no device that it is removing. QEMU tries to reset it by its bus
    # then, and says so if the device shares its bus.
    check_unharmed(guest, may_say=f"Cannot reset device {device.host_bdf}")


@pytest.mark.covers("HOT-05")
def test_two_at_once(guest: Guest) -> None:
    both = guest.devices[1:]
    plug(guest, *both)
    for device in both:
        check_use(guest, device)
    unplug(guest, *both)
    assert not [device for device in both if is_plugged(guest, device)]
    plug(guest, *reversed(both))
    for device in both:
        check_use(guest, device)
    check_unharmed(guest)
