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
#: The storm of events is a burst every 20 ms, which leaves the guest time to restart.
BURST, PAUSE_MS = 16, 20

STORM = pytest.mark.parametrize("storm", [False, True], ids=["idle", "storm"])


def check_events(guest: Guest) -> None:
    """Check that a burst of events reaches the guest exactly."""
    flooder = source(guest, Ability.WRITE, Ability.FLOOD)
    queue = guest.event_queue()
    mark = queue.mark()
    dma = flooder.burst(EVENTS)
    flooder.perform(dma)
    queue.expect(flooder.expected(dma), mark)


def start_storm(guest: Guest) -> None:
    """Have events come until the guest restarts, and wait for the first ones."""
    flooder = source(guest, Ability.WRITE, Ability.FLOOD)
    queue = guest.event_queue()
    mark = queue.mark()
    storm = flooder.command(flooder.burst(BURST), times=1_000_000, pause_ms=PAUSE_MS)
    guest.run(f"({storm}) >/dev/null 2>&1 &")
    queue.wait_for(BURST, mark)


def check_restart(guest: Guest, restart: Callable[[], None], *, storm: bool) -> None:
    """Check events before and after a restart, that the guest restarted, and that its vEVENTQ was
    allocated only once. With a `storm`, events come until the restart."""
    check_events(guest)
    if storm:
        start_storm(guest)
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
@STORM
def test_reboot(guest: Guest, storm: bool) -> None:
    check_restart(guest, lambda: guest.console.send("reboot -f"), storm=storm)


@pytest.mark.covers("VEQ-16")
@pytest.mark.guest(FLOODED)
@pytest.mark.timeout(180)
@STORM
def test_kexec(fleet: Fleet, host: Host, storm: bool) -> None:
    spec = replace(FLOODED, disks=(host.files.guest_kernel, host.files.guest_initrd))
    kexec = 'hil kexec /tmp/Image /tmp/initrd "$(cat /proc/cmdline)"'
    with fleet.guests([spec], Freshness.CLEAN) as (guest,):
        guest.run("cat /dev/vda >/tmp/Image; cat /dev/vdb >/tmp/initrd", timeout=60)
        check_restart(guest, lambda: guest.console.send(kexec), storm=storm)
