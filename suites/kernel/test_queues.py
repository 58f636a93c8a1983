"""Event queues come and go in a host's kernel that poisons freed memory: it uses none of it."""

from __future__ import annotations

import pytest

from harness.devices import source_of
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug
from harness.host.ability import ANY, FLOODER, Ability
from harness.host.host import Host
from harness.host.races import close_and_destroy
from harness.steps import step

#: An SMMU whose device faults all the time, and others whose queues come and go.
GUEST = GuestSpec(
    smmus=(
        SmmuSpec(devices=(FLOODER,)),
        *(SmmuSpec(hot=(ANY,), properties=(("cmdqv", "off"),)) for _ in range(2)),
    )
)
#: The guest that the first test has no use for: the host has a device for it.
ANY_DEVICE = GuestSpec(smmus=(SmmuSpec(devices=(ANY,)),))
ROUNDS = 12
#: The storm pauses between bursts, so that a guest with one CPU can still respond.
BURST, PAUSE_MS = 64, 10

CLOSED_AND_DESTROYED = 200

pytestmark = pytest.mark.needs("slab-poisoning")


@pytest.mark.covers("KRN-01")
@pytest.mark.known_defect("KRN-01", symptom="6b6b6b6b6b6b6b")
@pytest.mark.needs("kprobe")
@pytest.mark.guest(ANY_DEVICE)
def test_a_queue_is_closed_and_destroyed_at_once(host: Host, fleet: Fleet) -> None:
    fleet.clear()
    with step("close and destroy queues"):
        close_and_destroy(host, CLOSED_AND_DESTROYED)


@pytest.mark.covers("KRN-01")
@pytest.mark.guest(GUEST)
def test_queues_come_and_go_under_fire(guest: Guest) -> None:
    flooder = source_of(guest, guest.device(FLOODER), Ability.WRITE, Ability.FLOOD)
    storm = flooder.command(flooder.burst(BURST), times=1_000_000, pause_ms=PAUSE_MS)
    queue = guest.event_queue()
    mark = queue.mark()
    guest.run(f"{storm} >/dev/null 2>&1 & echo $! >/tmp/storm")
    queue.wait_for(BURST, mark)
    hot = [device for device in guest.devices if not device.cold]

    for _ in range(ROUNDS):
        plug(guest, *hot)
        eject(guest, *hot)

    mark = queue.mark()
    queue.wait_for(BURST, mark)
    guest.run("kill $(cat /tmp/storm)")
