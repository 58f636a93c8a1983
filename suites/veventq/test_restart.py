"""Events arrive before and after a guest's reboot or kexec, in a vEVENTQ that is allocated once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.devices import source
from harness.fixtures.guests import FLOODED
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.host.ability import Ability
from harness.host.host import Host
from harness.smmu.vevents import QueueType

EVENTS = 256


def check_events(guest: Guest) -> None:
    """Check that a burst of events reaches the guest exactly."""
    flooder = source(guest, Ability.WRITE, Ability.FLOOD)
    queue = guest.event_queue()
    mark = queue.mark()
    dma = flooder.burst(EVENTS)
    flooder.perform(dma)
    queue.expect(flooder.expected(dma), mark)


def check_restart(guest: Guest, restart: Callable[[], None]) -> None:
    """Check events before and after a restart, that the guest restarted, and that its vEVENTQ was
    allocated only once."""
    check_events(guest)
    started = time.monotonic()
    restart()
    guest.wait_ready()
    uptime = float(guest.run("cat /proc/uptime").text.split()[0])
    assert uptime < time.monotonic() - started, "the guest did not restart"
    check_events(guest)
    allocated = len(guest.trace().event_queues(QueueType.ARM_SMMUV3).lines)
    assert allocated == 1, "the queue outlives a guest's reset and is allocated once"


@pytest.mark.covers("VEQ-16")
@pytest.mark.guest(FLOODED)
@pytest.mark.timeout(180)
def test_reboot(guest: Guest) -> None:
    check_restart(guest, lambda: guest.console.send("reboot -f"))


@pytest.mark.covers("VEQ-16")
@pytest.mark.guest(FLOODED)
@pytest.mark.timeout(180)
def test_kexec(fleet: Fleet, host: Host) -> None:
    spec = replace(FLOODED, disks=(host.files.guest_kernel, host.files.guest_initrd))
    with fleet.guests([spec], Freshness.CLEAN) as (guest,):

        def kexec() -> None:
            guest.run("cat /dev/vda >/tmp/Image; cat /dev/vdb >/tmp/initrd", timeout=60)
            guest.console.send('hil kexec /tmp/Image /tmp/initrd "$(cat /proc/cmdline)"')

        check_restart(guest, kexec)
