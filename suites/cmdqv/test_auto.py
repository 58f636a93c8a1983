"""What cmdqv=auto makes of an SMMU whose first device is plugged later."""

from __future__ import annotations

import pytest

from harness.devices import source_of
from harness.guest import description
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import plug, wait_ready
from harness.host.ability import ANY, WRITER, Ability
from suites.placement.faults import check_faults

AUTO = (SmmuSpec(hot=(ANY,), properties=(("cmdqv", "auto"),)),)
RUNNING = GuestSpec(smmus=(SmmuSpec(hot=(WRITER,), properties=(("cmdqv", "auto"),)),))

pytestmark = pytest.mark.needs("cmdqv")


@pytest.mark.known_defect("CQV-22", symptom=r"pc : \w*tegra241_cmdqv")
@pytest.mark.covers("CQV-22")
@pytest.mark.guest(GuestSpec(smmus=AUTO, paused=True))
def test_a_device_that_is_plugged_before_the_guest_starts(guest: Guest) -> None:
    (device,) = guest.devices
    guest.monitor.execute("device_add", **description.device_properties(device))
    guest.monitor.execute("cont")
    guest.wait_ready()


@pytest.mark.covers("CQV-22")
@pytest.mark.guest(RUNNING)
def test_a_device_that_is_plugged_while_the_guest_runs(guest: Guest) -> None:
    """The guest's tables name no CMDQV. The device works with the SMMU's own command queue."""
    device = guest.device(WRITER)
    plug(guest, device)
    check_faults(source_of(guest, device, Ability.WRITE))
    assert "NVDA200C" not in guest.run("ls /sys/bus/acpi/devices").text
    assert guest.kernel_log("CMDQ error") == ""


@pytest.mark.known_defect("CQV-22", symptom=r"pc : \w*tegra241_cmdqv")
@pytest.mark.covers("CQV-22")
@pytest.mark.guest(RUNNING)
def test_a_restart_after_a_device_was_plugged(guest: Guest) -> None:
    """QEMU makes the guest's tables anew at a restart."""
    device = guest.device(WRITER)
    plug(guest, device)
    guest.monitor.execute("system_reset")
    guest.wait_ready()
    wait_ready(guest, device)
    check_faults(source_of(guest, device, Ability.WRITE))
