"""A guest powers off the slot of the device that brought it its CMDQV. QEMU lives, whatever a guest
does to its slots; whether it keeps the device is its own affair."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.faults.guest_cmdqv import GuestCmdqv
from harness.faults.slot_power import power_off
from harness.fixtures.guests import WITH_CMDQV, with_cmdqv
from harness.guest.death import QemuDiedError
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.guest.hotplug import is_plugged, plug
from harness.host.ability import ANY, DISK
from harness.host.host import Host
from suites.cmdqv import traffic
from suites.cmdqv.queues import QUEUES, enabled

#: QEMU prints this for what stays allocated in the host's kernel.
LEFT = "Failed to free id"

pytestmark = pytest.mark.needs("cmdqv")


def reset(guest: Guest) -> None:
    guest.monitor.execute("system_reset")


def reboot(guest: Guest) -> None:
    guest.console.send("reboot -f")


def kexec(guest: Guest) -> None:
    guest.run("cat /dev/vda >/tmp/Image; cat /dev/vdb >/tmp/initrd", timeout=60)
    guest.console.send('hil kexec /tmp/Image /tmp/initrd "$(cat /proc/cmdline)"')


@pytest.mark.covers("CQV-18")
@pytest.mark.known_defect(
    "CQV-18", symptom=r"device_finalize: assertion failed: \(!dev->unplug_blockers\)"
)
@pytest.mark.guest(WITH_CMDQV)
@pytest.mark.parametrize(
    "restart",
    [reset, *(pytest.param(how, marks=pytest.mark.long) for how in (reboot, kexec))],
)
@pytest.mark.timeout(180)
def test_the_only_device(fleet: Fleet, host: Host, restart: Callable[[Guest], None]) -> None:
    """A guest without a device restarts. Its driver sets the queues up again, or clears them
    before: the kernel from 7.3 on does so at a shutdown, too."""
    disks = (host.files.guest_kernel, host.files.guest_initrd) if restart is kexec else ()
    with fleet.guests([replace(WITH_CMDQV, disks=disks)]) as (guest,):
        power_off(guest, guest.device(DISK))
        restart(guest)
        guest.wait_ready()
        assert guest.monitor.execute("query-status")["status"] == "running"
        assert LEFT not in guest.qemu_messages()


@pytest.mark.covers("CQV-18")
@pytest.mark.known_defect(
    "CQV-18", symptom=r"device_finalize: assertion failed: \(!dev->unplug_blockers\)"
)
@pytest.mark.guest(WITH_CMDQV)
def test_the_only_device_before_the_guest_ends(guest: Guest) -> None:
    power_off(guest, guest.device(DISK))
    guest.console.send("poweroff -f")
    assert guest.session.wait(guest.name, 30) == 0
    assert LEFT not in guest.qemu_messages()


@pytest.mark.covers("CQV-18")
@pytest.mark.known_defect(
    "CQV-18", symptom=r"device_finalize: assertion failed: \(!dev->unplug_blockers\)"
)
@pytest.mark.guest(with_cmdqv(ANY, DISK))
def test_one_of_two_devices(guest: Guest) -> None:
    """The other device goes on with its commands, before and after a restart."""
    first = guest.devices[0]
    power_off(guest, first)
    for queue in QUEUES:
        traffic.write_blocks(guest, queue, 4)
    reboot(guest)
    guest.wait_ready()
    assert enabled(GuestCmdqv(guest))
    for queue in QUEUES:
        traffic.write_blocks(guest, queue, 4)
    if not is_plugged(guest, first):
        plug(guest, first)
    assert LEFT not in guest.qemu_messages()


@pytest.mark.covers("CQV-18")
@pytest.mark.long
@pytest.mark.guest(WITH_CMDQV)
def test_the_next_guest_has_all_that_the_host_offers(fleet: Fleet) -> None:
    """What is left of a guest that did this, dead or alive, does not concern the next one."""
    with contextlib.suppress(QemuDiedError), fleet.guests([WITH_CMDQV]) as (before,):
        power_off(before, before.device(DISK))
        reset(before)
        before.wait_ready()
    with fleet.guests([WITH_CMDQV], Freshness.COLD) as (guest,):
        assert enabled(GuestCmdqv(guest))
        for queue in QUEUES:
            traffic.write_blocks(guest, queue, 4)
        assert guest.qemu_messages() == ""
