"""The device that brought a guest its CMDQV is removed from the host, as if it were pulled out."""

from __future__ import annotations

import pytest

from harness.errors import ProductError
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.fixtures.guests import WITH_CMDQV
from harness.guest.fleet import Fleet, Freshness
from harness.guest.hotplug import is_plugged
from harness.host import pci
from harness.host.ability import DISK
from harness.host.host import Host
from harness.waiting import wait_for
from suites.cmdqv import traffic
from suites.cmdqv.queues import BLOCKED, QUEUES, enabled

#: The host's kernel asks QEMU for the device at once, and again every ten seconds.
ASKED_SECONDS = 15.0
REMOVED_SECONDS = 30.0


@pytest.mark.covers("HOT-06")
@pytest.mark.needs("cmdqv")
@pytest.mark.guest(WITH_CMDQV)
def test_the_first_device_stays_until_the_guest_ends(fleet: Fleet, host: Host) -> None:
    """QEMU keeps the device, and says why; the guest works on; and once the guest has ended, the
    removal does."""
    with fleet.guests([WITH_CMDQV]) as (guest,):
        device = guest.device(DISK)
        pci.remove(guest.session, device.host_bdf)
        wait_for(
            "QEMU to say why it keeps the device",
            lambda: BLOCKED in guest.qemu_messages(),
            deadline=ASKED_SECONDS,
            error=ProductError,
            last_seen=guest.qemu_messages,
        )
        for queue in QUEUES:
            traffic.write_blocks(guest, queue, 4)
        assert is_plugged(guest, device)
        assert enabled(GuestCmdqv(guest))
        assert pci.is_present(guest.session, device.host_bdf)
        guest.kill()
    wait_for(
        f"the host to be without {device.host_bdf}",
        lambda: not pci.is_present(host.session, device.host_bdf),
        deadline=REMOVED_SECONDS,
        error=ProductError,
    )
    pci.rescan(host.session)
    host.assign([device.host_bdf])
    with fleet.guests([WITH_CMDQV], Freshness.COLD) as (following,):
        for queue in QUEUES:
            traffic.write_blocks(following, queue, 4)
