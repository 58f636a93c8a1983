"""A guest names its devices by its own StreamIDs in its command queues; the hardware puts the
physical ones there, and refuses those of other guests' devices.

No guest here has ATS, so that its driver issues no such command: the tests do.
"""

from __future__ import annotations

import pytest

from harness.expectation import only
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.fixtures.guests import with_cmdqv
from harness.guest.description import AssignedDevice
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.guest.hotplug import eject
from harness.host.ability import ANY
from harness.host.host import Host, Silicon
from harness.smmu.commands import Opcode, atc_inv, opcode, sync
from suites.cmdqv.errors import check_refused
from suites.cmdqv.queues import QUEUES

ONE, TWO = with_cmdqv(ANY), with_cmdqv(ANY, ANY)

pytestmark = pytest.mark.needs("cmdqv")


def issued_for(
    guest: Guest, silicon: Silicon, lvcmdq: int, device: AssignedDevice
) -> list[tuple[int, int, int, int]]:
    """Have a guest issue ATC_INV for one of its devices, and return what the SMMU got for it: the
    VINTF, the LVCMDQ and the two words of each command."""
    before = silicon.count()
    GuestCmdqv(guest).carry_out(lvcmdq, atc_inv(device.vsid), sync())
    return [one for one in silicon.issued(before) if opcode(one[2]) == Opcode.ATC_INV]


@pytest.mark.covers("CQV-23")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.guest(TWO, freshness=Freshness.SHARED)
@pytest.mark.parametrize("lvcmdq", QUEUES)
def test_each_device_has_its_own(guest: Guest, host: Host, silicon: Silicon, lvcmdq: int) -> None:
    physical = [host.stream_id(device.host_bdf) for device in guest.devices]
    assert len({*physical, *(device.vsid for device in guest.devices)}) == 4
    for device, sid in zip(guest.devices, physical, strict=True):
        issued = issued_for(guest, silicon, lvcmdq, device)
        assert [one[1:] for one in issued] == [(lvcmdq, *atc_inv(sid))]


@pytest.mark.covers("CQV-23")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.guest(ONE, ONE, freshness=Freshness.SHARED)
def test_two_guests_use_the_same_name_for_different_devices(
    guests: list[Guest], host: Host, silicon: Silicon
) -> None:
    devices = [guest.devices[0] for guest in guests]
    assert len({device.vsid for device in devices}) == 1
    vintfs = set()
    for guest, device in zip(guests, devices, strict=True):
        issued = issued_for(guest, silicon, 0, device)
        vintf, *command = only("ATC_INVs that the SMMU got", issued)
        assert command == [0, *atc_inv(host.stream_id(device.host_bdf))]
        vintfs.add(vintf)
    assert len(vintfs) == 2


@pytest.mark.covers("CQV-23")
@pytest.mark.guest(ONE, ONE, freshness=Freshness.SHARED)
@pytest.mark.parametrize("lvcmdq", QUEUES)
def test_physical_stream_ids_are_refused(guests: list[Guest], host: Host, lvcmdq: int) -> None:
    """A guest cannot reach a device by the host's name for it: neither its own nor another's."""
    for device in (guest.devices[0] for guest in guests):
        check_refused(guests[0], lvcmdq, atc_inv(host.stream_id(device.host_bdf)))


@pytest.mark.covers("CQV-23")
@pytest.mark.guest(ONE, TWO, freshness=Freshness.SHARED)
def test_the_name_of_a_device_that_only_another_guest_has_is_refused(guests: list[Guest]) -> None:
    one, two = guests
    check_refused(one, 0, atc_inv(two.devices[1].vsid))


@pytest.mark.covers("CQV-23")
@pytest.mark.guest(TWO)
def test_the_name_of_a_device_that_has_left_is_refused(guest: Guest) -> None:
    device = guest.devices[1]
    eject(guest, device)
    check_refused(guest, 0, atc_inv(device.vsid))
