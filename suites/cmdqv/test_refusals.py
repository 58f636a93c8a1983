"""When a CMDQV is not available, QEMU refuses cmdqv=on and starts without one for cmdqv=auto."""

from __future__ import annotations

import errno
import os

import pytest

from harness.boundary.client import CMDQV, SMMUV3, Boundary, behind_boundary
from harness.boundary.on_host.rules import Call, FailCall
from harness.errors import ProductError
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.guest import description
from harness.guest.description import EXPLICIT, GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest, QemuRefusedError
from harness.guest.hotplug import PLUG_SECONDS
from harness.host.ability import ANY, DISK
from harness.waiting import wait_for
from suites.cmdqv import traffic
from suites.cmdqv.queues import QUEUES, enabled

#: QEMU prints this for cmdqv=on, or before that for other properties that are auto.
NEEDS_A_DEVICE = "requires at least one cold-plugged VFIO device"
NO_STREAM_ID = f"IOMMU_VDEVICE_ALLOC failed: {os.strerror(errno.ENOSPC)}"

#: A guest that gets a device later, with a CPU for each command queue.
LATER = behind_boundary(
    GuestSpec(smmus=(SmmuSpec(devices=(DISK,), hot=(ANY,), properties=(("cmdqv", "on"),)),), cpus=2)
)


def guest_with(value: str) -> GuestSpec:
    """Return a guest with a device and with this value of `cmdqv`."""
    return GuestSpec(smmus=(SmmuSpec(devices=(ANY,), properties=(("cmdqv", value),)),))


def refusal(fleet: Fleet, *guests: GuestSpec) -> str:
    """Start these guests; return what QEMU prints when it refuses to start the last one."""
    with pytest.raises(QemuRefusedError) as refused:
        with fleet.guests(guests, Freshness.COLD):
            pass
    return refused.value.said


def has_cmdqv(fleet: Fleet, guest: GuestSpec) -> bool:
    """Boot the guest, and return whether its ACPI tables name a CMDQV."""
    with fleet.guests([guest], Freshness.COLD) as (running,):
        return "NVDA200C" in running.run("ls /sys/bus/acpi/devices").text


@pytest.mark.covers("CQV-02")
def test_without_a_device_on_is_refused(fleet: Fleet) -> None:
    automatic = dict.fromkeys(EXPLICIT, "auto")
    nothing = SmmuSpec(properties=tuple({**automatic, "cmdqv": "on"}.items()))
    assert NEEDS_A_DEVICE in refusal(fleet, GuestSpec(smmus=(nothing,)))


@pytest.mark.known_defect("CQV-02", symptom="QEMU started")
@pytest.mark.covers("CQV-02")
def test_without_a_device_on_is_refused_whatever_else_is_said(fleet: Fleet) -> None:
    nothing = SmmuSpec(properties=tuple({**EXPLICIT, "cmdqv": "on"}.items()))
    with fleet.guests([GuestSpec(smmus=(nothing,))], Freshness.COLD) as (running,):
        raise AssertionError(f"QEMU started:\n{running.qemu_messages()}")


@pytest.mark.covers("CQV-03")
@pytest.mark.needs("no-cmdqv")
@pytest.mark.guest(guest_with("on"))
def test_on_is_refused_by_a_host_without(fleet: Fleet) -> None:
    assert "CMDQV requested but not supported" in refusal(fleet, guest_with("on"))


@pytest.mark.covers("CQV-03")
@pytest.mark.needs("no-cmdqv")
@pytest.mark.guest(guest_with("auto"))
def test_auto_does_without_on_a_host_without(fleet: Fleet) -> None:
    assert not has_cmdqv(fleet, guest_with("auto"))


@pytest.mark.covers("CQV-03")
@pytest.mark.needs("cmdqv")
@pytest.mark.guest(guest_with("auto"))
@pytest.mark.parametrize(("value", "there"), [("auto", True), ("off", False)])
def test_a_host_with_it_gives_what_is_asked(fleet: Fleet, value: str, there: bool) -> None:
    assert has_cmdqv(fleet, guest_with(value)) is there


@pytest.mark.covers("CQV-06", "LOSS-13")
@pytest.mark.needs("cmdqv")
@pytest.mark.guest(guest_with("on"))
@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EINVAL], ids=errno.errorcode.get)
def test_qemu_does_not_start_without_the_event_queue(fleet: Fleet, error: int) -> None:
    guest = behind_boundary(guest_with("on"), {CMDQV: [FailCall(error)]})
    assert f"IOMMU_VEVENTQ_ALLOC failed: {os.strerror(error)}" in refusal(fleet, guest)


@pytest.mark.covers("CQV-10")
@pytest.mark.needs("cmdqv")
@pytest.mark.guest(guest_with("on"))
def test_a_device_for_which_no_stream_id_is_left(fleet: Fleet) -> None:
    """The host has 16 StreamIDs for a guest. The boundary fails every request, as the host would
    fail the 17th. The guest runs, and QEMU reports the error."""
    none_left = FailCall(errno.ENOSPC, Call.VDEVICE_ALLOC, count=1000)
    guest = behind_boundary(guest_with("on"), {SMMUV3: [none_left]})
    with fleet.guests([guest], Freshness.COLD) as (running,):
        said = running.qemu_messages()
        assert NO_STREAM_ID in said
        assert running.run("true").status == 0


@pytest.mark.covers("CQV-10")
@pytest.mark.needs("cmdqv")
@pytest.mark.guest(LATER)
def test_the_devices_before_it_keep_theirs(guest: Guest, boundary: Boundary) -> None:
    """Only a device that comes later finds no StreamID. The guest's other device has its own, and
    its commands are carried out."""
    boundary.apply(FailCall(errno.ENOSPC, Call.VDEVICE_ALLOC, count=1000))
    guest.monitor.execute("device_add", **description.device_properties(guest.device(ANY)))
    wait_for(
        "QEMU to report that no StreamID is left",
        lambda: NO_STREAM_ID in guest.qemu_messages(),
        deadline=PLUG_SECONDS,
        error=ProductError,
    )
    for queue in QUEUES:
        traffic.write_blocks(guest, queue, 4)
    assert enabled(GuestCmdqv(guest))


@pytest.mark.covers("CQV-13")
@pytest.mark.needs("cmdqv-vintfs:2")
@pytest.mark.guest(guest_with("on"), guest_with("on"))
def test_a_guest_for_which_no_interface_is_left(fleet: Fleet) -> None:
    said = refusal(fleet, guest_with("on"), guest_with("on"))
    assert f"IOMMU_VIOMMU_ALLOC failed: {os.strerror(errno.ENOSPC)}" in said


@pytest.mark.covers("CQV-14")
@pytest.mark.needs("cmdqv-version:2")
@pytest.mark.guest(guest_with("on"))
def test_another_version_is_refused(fleet: Fleet) -> None:
    said = refusal(fleet, guest_with("on"))
    assert "Host CMDQV: unsupported version 2 (expected 1)" in said


@pytest.mark.covers("CQV-14")
@pytest.mark.needs("cmdqv-vcmdqs:4", "cmdqv-vintfs:4")
@pytest.mark.guest(guest_with("on"))
def test_too_few_queues_are_refused(fleet: Fleet) -> None:
    said = refusal(fleet, guest_with("on"))
    assert "Host CMDQV: insufficient vCMDQs log2=0 (need >= 1)" in said


@pytest.mark.covers("CQV-14")
@pytest.mark.needs("cmdqv-sids:8")
@pytest.mark.guest(guest_with("on"))
def test_too_few_stream_ids_are_refused(fleet: Fleet) -> None:
    said = refusal(fleet, guest_with("on"))
    assert "Host CMDQV: insufficient SIDs log2=3 (need >= 4)" in said
