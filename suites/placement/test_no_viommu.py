"""When an SMMU's first device gets no vIOMMU, QEMU refuses it with the reason, and nothing is left
that keeps a later attempt from working."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import pytest

from harness.boundary.client import CMDQV, SMMUV3, Boundary, behind_boundary
from harness.boundary.on_host.rules import Address, Call, FailCall
from harness.devices import source, source_of
from harness.guest import description
from harness.guest.census import Counting
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest, QemuRefusedError
from harness.guest.hotplug import is_plugged, plug
from harness.host.ability import WRITER, Ability
from harness.qmp import QmpRefusedError
from suites.placement.faults import check_faults

NO_MEMORY = os.strerror(errno.ENOMEM)
NO_VIOMMU = f"IOMMU_VIOMMU_ALLOC failed: {NO_MEMORY}"
NO_ABORT = f"Failed to allocate hwpt: {NO_MEMORY}"
NO_PAGE = "IOMMUFD vIOMMU mmap failed"
HINT = "Unable to alloc vIOMMU: hiodi devid 0x"


def guest_with(cmdqv: str) -> GuestSpec:
    """Return a guest with a device, and with this value of `cmdqv`."""
    return GuestSpec(smmus=(SmmuSpec(devices=(WRITER,), properties=(("cmdqv", cmdqv),)),))


EMPTY = behind_boundary(GuestSpec(smmus=(SmmuSpec(hot=(WRITER,), properties=(("cmdqv", "off"),)),)))


def check_refused_and_then_not(
    fleet: Fleet, spec: GuestSpec, queue: Address, call: Call, messages: Sequence[str]
) -> None:
    """Check that QEMU does not start a guest for which a call fails, that it says why, and that it
    starts it afterwards, with a device that works."""
    failing = behind_boundary(spec, {queue: [FailCall(call=call, errno=errno.ENOMEM)]})
    with pytest.raises(QemuRefusedError) as refused:
        with fleet.guests([failing], Freshness.COLD):
            pass
    for message in messages:
        assert message in refused.value.said
    with fleet.guests([spec], Freshness.COLD) as (guest,):
        check_faults(source(guest, Ability.WRITE))
        assert guest.qemu_messages() == ""


@pytest.mark.covers("ACC-16")
@pytest.mark.guest(guest_with("off"))
def test_a_cold_plugged_device(fleet: Fleet) -> None:
    messages = (NO_VIOMMU, HINT)
    check_refused_and_then_not(fleet, guest_with("off"), SMMUV3, Call.VIOMMU_ALLOC, messages)


@pytest.mark.covers("ACC-16")
@pytest.mark.needs("cmdqv")
@pytest.mark.guest(guest_with("on"))
@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(Call.VIOMMU_ALLOC, NO_VIOMMU, id="viommu"),
        pytest.param(Call.MMAP, NO_PAGE, id="page-0"),
    ],
)
def test_a_cold_plugged_device_with_a_cmdqv(fleet: Fleet, call: Call, message: str) -> None:
    check_refused_and_then_not(fleet, guest_with("on"), CMDQV, call, (message, HINT))


@pytest.mark.covers("ACC-16")
@pytest.mark.guest(EMPTY)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(Call.VIOMMU_ALLOC, NO_VIOMMU, id="viommu"),
        pytest.param(Call.HWPT_ALLOC, NO_ABORT, id="page-table-that-aborts"),
    ],
)
def test_a_hot_plugged_device(guest: Guest, boundary: Boundary, call: Call, message: str) -> None:
    device, counting = guest.device(WRITER), Counting(guest)

    def check_refused() -> None:
        boundary.apply(FailCall(call=call, errno=errno.ENOMEM))
        with pytest.raises(QmpRefusedError) as refused:
            guest.monitor.execute("device_add", **description.device_properties(device))
        assert message in refused.value.reason
        assert not is_plugged(guest, device)

    # A guest's first device of all brings what the next ones share: pages of memory that do not
    # move, a descriptor of KVM's.
    check_refused()
    before = counting.take()
    check_refused()
    # HOT-03 is about dma-bufs that stay.
    grown = counting.take().growth(before)
    assert [line for line in grown if not line.startswith("descriptors: /dmabuf:")] == []
    plug(guest, device)
    check_faults(source_of(guest, device, Ability.WRITE))
