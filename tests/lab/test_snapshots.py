"""Guests of a virtual host are restored from snapshots: when, and to what state."""

from __future__ import annotations

import pytest

from harness.devices import source
from harness.devices.dma import Direction
from harness.fixtures.guests import DEFAULT
from harness.guest.description import GuestSpec
from harness.guest.fleet import Fleet, Freshness
from harness.host.ability import Ability
from harness.host.host import Host

pytestmark = pytest.mark.lab


@pytest.mark.needs("snapshot")
@pytest.mark.guest(DEFAULT)
def test_a_restored_guest_is_clean_and_faults(host: Host, fleet: Fleet) -> None:
    for _ in range(3):
        with fleet.guests([DEFAULT]) as (guest,):
            assert guest.run("cat /tmp/mark", check=False).status != 0, "not clean"
            guest.run("echo used >/tmp/mark")
            reader = source(guest, Ability.READ)
            queue = guest.event_queue()
            mark = queue.mark()
            dma = reader.burst(1, direction=Direction.READ)
            reader.perform(dma)
            queue.expect(reader.expected(dma), mark)


@pytest.mark.needs("snapshot")
@pytest.mark.guest(DEFAULT)
def test_devices_that_no_guest_had_survive_a_restore(host: Host, fleet: Fleet) -> None:
    """A restore also brings back the state of an edu that no guest has. QEMU itself saves none."""
    free = "0000:11:00.0"
    config = f"setpci -s {free} BASE_ADDRESS_0 COMMAND"
    before = host.connection.run(config).text
    with fleet.guests([DEFAULT]) as (guest,):
        assert free not in {device.host_bdf for device in guest.devices}
        assert host.connection.run(config).text == before


@pytest.mark.guest(DEFAULT)
def test_sharing_ends_with_a_failure(fleet: Fleet) -> None:
    with fleet.guests([DEFAULT]) as (guest,):
        guest.run("echo mine >/tmp/mark")
    with fleet.guests([DEFAULT], Freshness.SHARED) as (guest,):
        # The guest before was its test's own.
        assert guest.run("cat /tmp/mark", check=False).status != 0
        guest.run("echo mine >/tmp/mark")
    with fleet.guests([DEFAULT], Freshness.SHARED) as (guest,):
        assert guest.run("cat /tmp/mark").text == "mine\n"
    fleet.spoil()
    with fleet.guests([DEFAULT], Freshness.SHARED) as (guest,):
        assert guest.run("cat /tmp/mark", check=False).status != 0


ONCE = GuestSpec(memory_mib=DEFAULT.memory_mib + 1)


@pytest.mark.guest(ONCE)
def test_guests_of_one_test_are_saved_when_it_asks_again(fleet: Fleet, host: Host) -> None:
    """A host that stays up is one on which the same test may run again."""
    saved = []
    for _ in range(2):
        with fleet.guests([ONCE]):
            assert fleet._current
            saved.append(host.snapshots.has(fleet._current.key))
    assert saved == [not host.ends_with_run, True]
