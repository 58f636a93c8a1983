"""What cmdqv=auto makes of an SMMU whose first device is plugged later."""

from __future__ import annotations

import pytest

from harness.guest import description
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import ANY

AUTO = (SmmuSpec(hot=(ANY,), properties=(("cmdqv", "auto"),)),)


@pytest.mark.known_defect("CQV-22", symptom="Unable to handle kernel paging request")
@pytest.mark.covers("CQV-22")
@pytest.mark.needs("cmdqv")
@pytest.mark.guest(GuestSpec(smmus=AUTO, paused=True))
def test_a_device_that_is_plugged_before_the_guest_starts(guest: Guest) -> None:
    (device,) = guest.devices
    guest.monitor.execute("device_add", **description.device_properties(device))
    guest.monitor.execute("cont")
    guest.wait_ready()
