"""A kind of device that no suite names: assigned, driven by the guest, and given back."""

from __future__ import annotations

import pytest

from harness.guest.description import AssignedDevice, GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import is_plugged, is_ready, plug, unplug

pytestmark = [pytest.mark.lab, pytest.mark.needs("device:igb")]

COLD = GuestSpec(smmus=(SmmuSpec(devices=("igb",)),))
HOT = GuestSpec(smmus=(SmmuSpec(hot=("igb",)),))


def check_driven(guest: Guest, card: AssignedDevice) -> None:
    """The guest's kernel has an interface of it, behind its SMMU."""
    assert guest.run(f"basename $(readlink {card.sysfs}/driver)").text == "igb\n"
    (interface,) = guest.run(f"ls {card.sysfs}/net").text.split()
    assert guest.run(f"cat /sys/class/net/{interface}/address").text.count(":") == 5
    kinds = [line.text for line in guest.trace() if line.name == "smmuv3_accel_install_ste"]
    assert any(f"vSID={card.vsid:#x} " in one and "translate" in one for one in kinds)


@pytest.mark.guest(COLD)
def test_it_is_there_from_the_start(guest: Guest) -> None:
    """Restored from a snapshot, which holds its state, where the host has snapshots."""
    check_driven(guest, guest.device("igb"))


@pytest.mark.guest(HOT)
def test_it_comes_and_goes(guest: Guest) -> None:
    card = guest.device("igb")
    plug(guest, card)
    assert is_ready(guest, card)
    check_driven(guest, card)
    unplug(guest, card)
    assert not is_plugged(guest, card)
    assert guest.qemu_messages() == ""
