"""The queues of two SMMUs overflow."""

from __future__ import annotations

from harness.boundary.client import SMMUV3, Boundary, behind_boundary
from harness.boundary.on_host.rules import LostHeader
from harness.devices import source
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import WRITER, Ability
from harness.reproduce.show import Say, in_guest
from harness.smmu import loss

_SMMUS = 2


def _show(guest: Guest, say: Say) -> bool:
    """Give QEMU a LOST_EVENTS header in each of its queues."""
    boundary, expected = Boundary(guest), []
    for slot in range(_SMMUS):
        address = SMMUV3._replace(slot=slot)
        queue = boundary.queue(address).id
        say(f"QEMU gets a LOST_EVENTS header from its vEVENTQ with id {queue}")
        boundary.apply(LostHeader(), queue=address)
        expected.append(queue)
    for smmu in range(_SMMUS):
        writer, events = source(guest, Ability.WRITE, smmu=smmu), guest.event_queue(smmu)
        mark, dma = events.mark(), writer.burst(1)
        writer.perform(dma)
        events.expect(writer.expected(dma), mark)
    say("it has read them: a later event of each SMMU has arrived")
    said = [message.id for message in loss.messages(guest.qemu_messages())]
    say(f"QEMU should report an overflow of the queues {expected}")
    say(f"QEMU reports one of the queues {said}")
    return said != expected


SHOW = in_guest(
    behind_boundary(GuestSpec(smmus=(SmmuSpec(devices=(WRITER,)),) * _SMMUS)),
    _show,
)
