"""The next test gets a guest that works, whatever state a test leaves its guest in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.devices import source
from harness.devices.dma import Direction
from harness.errors import HilError
from harness.fixtures.guests import DEFAULT
from harness.guest.console import GuestSilentError
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.host import pci
from harness.host.ability import Ability

pytestmark = pytest.mark.lab


def panic(guest: Guest) -> None:
    guest.console.send("echo c >/proc/sysrq-trigger")
    with contextlib.suppress(HilError):
        guest.wait_ready(deadline=20)  # ends with the report of the crash


LEFT: dict[str, Callable[[Guest], object]] = {
    "panicked": panic,
    "killed": lambda guest: guest.kill(),
    "stopped": lambda guest: guest.monitor.execute("stop"),
    "continued": lambda guest: [guest.monitor.execute(name) for name in ("stop", "cont")],
    "rebooting": lambda guest: guest.console.send("reboot -f"),
    "reset": lambda guest: guest.monitor.execute("system_reset"),
    "powered-off": lambda guest: guest.console.send("poweroff -f"),
    "busy": lambda guest: guest.console.send("while :; do :; done"),
}


@pytest.mark.kernel_report("sysrq: Trigger a crash")
@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT.keys())
@pytest.mark.guest(DEFAULT)
def test_the_next_one_works(fleet: Fleet, left: Callable[[Guest], object]) -> None:
    with fleet.guests([DEFAULT], Freshness.SHARED) as (guest,):
        left(guest)
    with fleet.guests([DEFAULT], Freshness.SHARED) as (guest,):
        reader, queue = source(guest, Ability.READ), guest.event_queue()
        mark = queue.mark()
        dma = reader.burst(1, direction=Direction.READ)
        reader.perform(dma)
        queue.expect(reader.expected(dma), mark)


@pytest.mark.guest(DEFAULT)
def test_its_devices_are_not_bound_anew(fleet: Fleet) -> None:
    """A link in sysfs that is made anew has another inode."""
    host, links = fleet.host, []
    for _ in range(2):
        with fleet.guests([DEFAULT], Freshness.COLD) as (guest,):
            paths = [f"{pci.SYSFS}/{device.host_bdf}/driver" for device in guest.devices]
            links.append(host.connection.run(["stat", "-c", "%i", *paths]).text)
    assert links[0] == links[1]
    fleet.clear()
    bound = pci.describe(host.session, [device.host_bdf for device in guest.devices]).values()
    assert not [device.bdf for device in bound if device.driver == "vfio-pci"]


@pytest.mark.guest(replace(DEFAULT, paused=True))
def test_a_guest_that_stays_silent_is_told_with_its_cpus(guest: Guest) -> None:
    with pytest.raises(GuestSilentError, match=r"\nits CPUs: PC=0+$"):
        guest.wait_ready(deadline=1)
