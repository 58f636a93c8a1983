"""QEMU works with iommufd and devices that it is given as open files, as libvirt starts it."""

from __future__ import annotations

import pytest

from harness.devices import source
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import WRITER, Ability
from suites.placement.faults import check_faults

#: Two SMMUs, whose devices share the one iommufd.
GUEST = GuestSpec(smmus=(SmmuSpec(devices=(WRITER,)),) * 2, descriptors=True)


@pytest.mark.covers("ACC-17")
@pytest.mark.guest(GUEST)
def test_events_arrive_before_and_after_a_reset(guest: Guest) -> None:
    for _ in range(2):
        for smmu in range(2):
            check_faults(source(guest, Ability.WRITE, smmu=smmu))
        guest.monitor.execute("system_reset")
        guest.wait_ready()
    assert guest.qemu_messages() == ""
