"""A device that is plugged into an empty root port is found, whether the port sleeps or is awake.

From 7.3 on, Linux may put a hot-plug port to sleep (runtime D3) on AArch64 as well, when its device
has gone. What a port without a PCI power management capability cannot do: tell, by a PME, of a
device that comes (PCIe base specification, 6.7.3.4).
"""

from __future__ import annotations

import contextlib

import pytest

from harness.errors import LabError
from harness.guest.description import AssignedDevice, GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, is_ready, plug
from harness.guest.root_port import RootPort
from harness.host.ability import ANY
from harness.waiting import wait_for

SMMUS = (SmmuSpec(devices=(ANY,), hot=(ANY,)),)
AWAKE, SLEEPY = GuestSpec(smmus=SMMUS), GuestSpec(smmus=SMMUS, ports_sleep=True)


def power(guest: Guest, port: RootPort) -> str:
    """Return the state of a port's runtime power management, in the kernel's words."""
    return guest.run(f"cat {port.sysfs}/power/runtime_status").text.strip()


def plug_and_eject(guest: Guest, device: AssignedDevice) -> None:
    plug(guest, device)
    assert is_ready(guest, device)
    eject(guest, device)


@pytest.mark.covers("HOT-08")
@pytest.mark.guest(AWAKE)
def test_a_port_that_is_awake(guest: Guest) -> None:
    device = guest.devices[1]
    for _ in range(2):
        plug_and_eject(guest, device)
        assert power(guest, RootPort(device.smmu, device.port)) == "active"


@pytest.mark.covers("HOT-08")
@pytest.mark.known_defect("HOT-08", symptom="the guest to find .*; last seen: False")
@pytest.mark.guest(SLEEPY)
def test_a_port_that_may_sleep(guest: Guest) -> None:
    """Whether the port sleeps is up to the guest's kernel."""
    device = guest.devices[1]
    plug_and_eject(guest, device)
    with contextlib.suppress(LabError):
        port = RootPort(device.smmu, device.port)
        wait_for("the port to sleep", lambda: power(guest, port) == "suspended", deadline=3)
    plug_and_eject(guest, device)
