"""A disk's data are right, and its interrupts arrive, whatever kind of translation a guest's kernel
chooses for it.

Linux: Documentation/admin-guide/kernel-parameters.txt (iommu.passthrough, iommu.strict) and
ABI/testing/sysfs-kernel-iommu_groups (type).
"""

from __future__ import annotations

import pytest

from harness.devices.nvme import Disk
from harness.guest.description import AssignedDevice, GuestSpec, SmmuSpec
from harness.guest.event_queue import QueueMark
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.guest.vfio import unbound
from harness.host.ability import DISK

MIB = 4
#: The kernel's options that choose the type of all default domains, by the type.
OPTIONS = {
    "identity": "iommu.passthrough=1",
    "DMA": "iommu.passthrough=0 iommu.strict=1",
    "DMA-FQ": "iommu.passthrough=0 iommu.strict=0",
}


def guest_with(cmdqv: str, kind: str = "") -> GuestSpec:
    """Return a guest with a disk, and with this type of default domains if one is given."""
    smmu = SmmuSpec(devices=(DISK,), properties=(("cmdqv", cmdqv),))
    return GuestSpec(smmus=(smmu,), append=OPTIONS.get(kind, ""))


def domain(guest: Guest, device: AssignedDevice) -> str:
    """Return the type of the domain of a device's group."""
    return guest.run(f"cat {device.sysfs}/iommu_group/type").text.strip()


def interrupts(guest: Guest) -> int:
    """Return how many interrupts of disks the guest has counted."""
    rows = guest.run("grep nvme /proc/interrupts").text.splitlines()
    return sum(int(word) for row in rows for word in row.split()[1:] if word.isdigit())


def check_data(guest: Guest) -> None:
    """Check that written data read back, with interrupts, and that the guest never had an event."""
    disk, before = Disk(guest, guest.device(DISK)), interrupts(guest)
    written = disk.write_random(mib=MIB)
    assert disk.digest(mib=MIB) == written
    assert interrupts(guest) > before
    assert guest.event_queue().since(QueueMark(0)) == []


def booted_with(cmdqv: str, *kinds: str) -> pytest.MarkDecorator:
    """Return the mark that has a test run in a guest of each of these kinds, its `kind`."""

    def booted(kind: str) -> pytest.MarkDecorator:
        return pytest.mark.guest(guest_with(cmdqv, kind), freshness=Freshness.COLD)

    return pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=booted(kind)) for kind in kinds]
    )


@pytest.mark.covers("DATA-04")
@booted_with("off", *OPTIONS)
def test_a_mode_that_is_chosen_at_boot(guest: Guest, kind: str) -> None:
    assert domain(guest, guest.device(DISK)) == kind
    check_data(guest)


@pytest.mark.covers("DATA-04")
@pytest.mark.needs("cmdqv")
@booted_with("on", "identity", "DMA-FQ")
def test_a_mode_that_is_chosen_at_boot_with_a_cmdqv(guest: Guest, kind: str) -> None:
    assert domain(guest, guest.device(DISK)) == kind
    check_data(guest)


@pytest.mark.covers("DATA-04")
@pytest.mark.guest(guest_with("off"))
def test_modes_that_are_chosen_later(guest: Guest) -> None:
    device = guest.device(DISK)
    for kind in ("identity", "DMA-FQ", "DMA", "identity", "DMA"):
        unbound(guest, device)
        guest.run(f"echo {kind} >{device.sysfs}/iommu_group/type")
        assert domain(guest, device) == kind
        check_data(guest)
