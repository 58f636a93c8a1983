"""When the kernel refuses what a stream table entry, GBPA or an unplug needs, QEMU says so, DMA is
as before, and nothing is left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from harness.boundary.client import Boundary, behind_boundary
from harness.boundary.on_host.rules import Call, FailCall
from harness.devices import source_of
from harness.devices.source import FaultSource
from harness.errors import ProductError
from harness.faults.command_queue import carry_out
from harness.faults.guest_tables import GuestTables, write_gbpa
from harness.faults.switched_off import switched_off
from harness.guest.census import Counting
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, is_plugged, plug
from harness.host.ability import ANY, PROBE, WRITER, Ability
from harness.smmu.commands import Command, cfgi_all, cfgi_ste
from harness.smmu.registers import CR0_SMMUEN, GBPA_ABORT
from harness.waiting import wait_for
from suites.placement.faults import check_faults

ONE = behind_boundary(GuestSpec(smmus=(SmmuSpec(devices=(PROBE,)),)))
#: A CMDQV would not let its device be unplugged; the other device keeps the SMMU's vIOMMU.
HOT = behind_boundary(
    GuestSpec(smmus=(SmmuSpec(devices=(ANY,), hot=(WRITER,), properties=(("cmdqv", "off"),)),))
)
WINDOW_OFFSET = GuestTables.MAPPED.offset

#: What QEMU says when the kernel refuses the new entry's page table, or to attach it.
REFUSALS = {
    Call.HWPT_ALLOC: f"Failed to allocate hwpt: {os.strerror(errno.ENOMEM)}",
    Call.ATTACH_PT: "error attach",
}
EVERY_STE = "Failed to install all STEs properly"
EVERY_GBPA = "Failed to attach all GBPA based HWPTs properly"
DEFAULT = "Unable to attach the default HW pagetable: hiodi devid 0x"


def translates(probe: FaultSource) -> bool:
    """Return whether a device's DMA goes by the windows of its tables."""
    return probe.reaches(WINDOW_OFFSET) and not probe.reaches()


@pytest.mark.covers("ACC-14")
@pytest.mark.guest(ONE)
@pytest.mark.parametrize("call", list(REFUSALS), ids=lambda call: call.name)
@pytest.mark.parametrize(
    ("command", "also"),
    [
        pytest.param(cfgi_ste, "", id="CFGI_STE"),
        pytest.param(lambda _: cfgi_all(), EVERY_STE, id="CFGI_ALL"),
    ],
)
def test_a_stream_table_entry(
    guest: Guest,
    boundary: Boundary,
    probe: FaultSource,
    call: Call,
    command: Callable[[int], Command],
    also: str,
) -> None:
    """The guest's driver puts a CMD_SYNC in the place of the command that fails, and goes on."""
    queue, invalidate = guest.event_queue(), command(probe.vsid)
    GuestTables(guest, queue, probe.vsid).install_windows()
    assert translates(probe)
    counting = Counting(guest)
    before = counting.take()
    boundary.apply(FailCall(call=call, errno=errno.ENOMEM))

    carry_out(guest, queue, invalidate)

    said = guest.qemu_messages()
    assert REFUSALS[call] in said
    assert also in said
    wait_for(
        "the guest to report the command",
        lambda: "Illegal command" in guest.kernel_log("CMDQ error"),
        deadline=10,
        error=ProductError,
    )
    assert translates(probe)
    # The kernel refuses no more, and the same command succeeds.
    carry_out(guest, queue, invalidate)
    assert translates(probe)
    assert guest.kernel_log("CMDQ error").count("Illegal command") == 1
    assert counting.take().growth(before) == []


@pytest.mark.covers("ACC-14")
@pytest.mark.guest(ONE)
def test_gbpa(guest: Guest, boundary: Boundary, probe: FaultSource) -> None:
    queue = guest.event_queue()
    with switched_off(guest, queue, CR0_SMMUEN):
        write_gbpa(guest, queue, 0)
        assert probe.reaches()
        boundary.apply(FailCall(call=Call.ATTACH_PT, errno=errno.ENOMEM))

        write_gbpa(guest, queue, GBPA_ABORT)

        assert EVERY_GBPA in guest.qemu_messages()
        assert probe.reaches()
        write_gbpa(guest, queue, GBPA_ABORT)
        assert not probe.reaches()


@pytest.mark.known_defect("ACC-14", symptom=r"Failed to free id: \d+ Device or resource busy")
@pytest.mark.covers("ACC-14")
@pytest.mark.guest(HOT)
def test_an_unplug(guest: Guest, boundary: Boundary) -> None:
    """While the guest gives the device up, and QEMU too, nothing can be attached to it. The device
    goes all the same, works when it is plugged again, and has left nothing behind."""
    device = guest.device(WRITER)
    plug(guest, device)
    check_faults(source_of(guest, device, Ability.WRITE))
    boundary.apply(FailCall(call=Call.ATTACH_PT, errno=errno.ENOMEM, count=1000))

    eject(guest, device)

    boundary.apply()
    assert not is_plugged(guest, device)
    assert DEFAULT in guest.qemu_messages()
    plug(guest, device)
    check_faults(source_of(guest, device, Ability.WRITE))
    left = [line for line in guest.qemu_messages().splitlines() if "Failed to free id" in line]
    assert not left, "\n".join(left)
