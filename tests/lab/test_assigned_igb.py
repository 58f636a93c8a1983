"""A device of a kind that no suite names is assigned, driven by the guest, and given back."""

from __future__ import annotations

import pytest

from harness.guest.description import AssignedDevice, GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import is_plugged, is_ready, plug, unplug
from harness.host.ability import of_role

pytestmark = [pytest.mark.lab, pytest.mark.needs("device:igb")]

IGB = of_role("igb")
COLD = GuestSpec(smmus=(SmmuSpec(devices=(IGB,)),))
HOT = GuestSpec(smmus=(SmmuSpec(hot=(IGB,)),))


def check_driven(guest: Guest, card: AssignedDevice) -> None:
    """Check that the guest's kernel has a network interface of the device, behind its SMMU."""
    assert guest.run(f"basename $(readlink {card.sysfs}/driver)").text == "igb\n"
    (interface,) = guest.run(f"ls {card.sysfs}/net").text.split()
    assert guest.run(f"cat /sys/class/net/{interface}/address").text.count(":") == 5
    kinds = [line.text for line in guest.trace() if line.name == "smmuv3_accel_install_ste"]
    assert any(f"vSID={card.vsid:#x} " in one and "translate" in one for one in kinds)


@pytest.mark.guest(COLD)
def test_it_is_there_from_the_start(guest: Guest) -> None:
    """The device works in a guest that starts with it. Where the host has snapshots the guest is
    restored from one, which holds the device's state."""
    check_driven(guest, guest.device(IGB))


@pytest.mark.guest(HOT)
def test_it_comes_and_goes(guest: Guest) -> None:
    card = guest.device(IGB)
    plug(guest, card)
    assert is_ready(guest, card)
    check_driven(guest, card)
    unplug(guest, card)
    assert not is_plugged(guest, card)
    assert guest.qemu_messages() == ""
