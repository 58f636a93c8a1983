"""The next test gets a guest that works, whatever state a test leaves its guest in."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.devices import source
from harness.devices.dma import Direction
from harness.errors import HilError, LabError
from harness.fixtures.guests import DEFAULT
from harness.guest.console import GuestSilentError
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.host import pci
from harness.host.ability import Ability
from harness.waiting import wait_for

pytestmark = pytest.mark.lab


#: Takes a vfio device for good (VFIO_DEVICE_BIND_IOMMUFD), then opens a file to tell that.
TAKE = (
    "import fcntl, os, struct, sys, time; "
    'device, iommu = os.open(sys.argv[1], os.O_RDWR), os.open("/dev/iommu", os.O_RDWR); '
    'fcntl.ioctl(device, 0x3B76, struct.pack("IIiI", 16, 0, iommu, 0)); '
    'os.open("/dev/zero", os.O_RDONLY); time.sleep(600)'
)


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


@pytest.mark.guest(DEFAULT)
def test_a_device_that_somebody_has_taken_meanwhile_is_the_labs(fleet: Fleet) -> None:
    """A program opens a device by its own iommufd between two guests."""
    with fleet.guests([DEFAULT], Freshness.COLD) as (guest,):
        bdf = guest.devices[0].host_bdf
    session = fleet.host.session
    for name, status in session.processes().items():
        if status is None:
            session.kill(name)
    node = f"/dev/vfio/devices/$(ls {pci.SYSFS}/{bdf}/vfio-dev)"
    hold = f"exec python3 -c '{TAKE}' {node}"
    pid = session.connection.run(f"setsid sh -c {shlex.quote(hold)} >/dev/null 2>&1 & echo $!").text
    try:
        wait_for(
            "the program to have the device",
            lambda: "/dev/zero" in session.connection.run(f"ls -l /proc/{pid.strip()}/fd").text,
            deadline=10,
        )
        with pytest.raises(LabError, match=f"device {bdf} is in use: held by process"):
            with fleet.guests([DEFAULT], Freshness.COLD):
                pass
    finally:
        session.connection.run(f"kill {pid}", check=False)


@pytest.mark.guest(replace(DEFAULT, paused=True))
def test_a_guest_that_stays_silent_is_told_with_its_cpus(guest: Guest) -> None:
    with pytest.raises(GuestSilentError, match=r"\nits CPUs: PC=0+$"):
        guest.wait_ready(deadline=1)
