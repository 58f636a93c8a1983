"""QEMU and the host's kernel give back all that a device took, however often it is plugged."""

from __future__ import annotations

import pytest

from harness.guest.census import Counting
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug
from harness.host.ability import ANY
from harness.host.host import Host
from harness.smmu.trace import TraceEvent
from harness.steps import step
from suites.hotplug.left import BUSY, dma_bufs, unexplained

#: A CMDQV has one device that must stay: suites/cmdqv tests that.
WITHOUT_CMDQV = (("cmdqv", "off"),)
#: Four SMMUs with one device each, so that plugging all four at once is four rounds. Each device is
#: the first and the last of its SMMU.
FOUR = GuestSpec(smmus=tuple(SmmuSpec(hot=(ANY,), properties=WITHOUT_CMDQV) for _ in range(4)))
#: A fifth SMMU keeps its device, so that QEMU keeps iommufd open. What QEMU did not free stays
#: there and is counted; closing iommufd would free it.
FIVE = GuestSpec(smmus=(*FOUR.smmus, SmmuSpec(devices=(ANY,), properties=WITHOUT_CMDQV)))
ROUNDS = 200


def plug_and_eject(guest: Guest, rounds: int) -> None:
    """Plug and eject all hot-pluggable devices together, until this many rounds are done. Each
    device counts as one round."""
    hot = [device for device in guest.devices if not device.cold]
    for _ in range(rounds // len(hot)):
        plug(guest, *hot)
        eject(guest, *hot)


@pytest.mark.covers("VEQ-06")
@pytest.mark.guest(FOUR)
def test_the_last_device_frees_the_queue_and_the_next_allocates(guest: Guest, host: Host) -> None:
    plug_and_eject(guest, 8)
    trace = guest.trace().named(TraceEvent.ALLOC_EVENTQ, TraceEvent.FREE_ID)
    assert trace.count(TraceEvent.ALLOC_EVENTQ) == 8
    # The four queues are freed before the next four are allocated, but for one that is busy now and
    # then (VEQ-06).
    busy = [one for one in guest.qemu_messages().splitlines() if BUSY.explains(one)]
    left = 1 if busy and BUSY.defect.concerns(host.facts) else 0
    alive: set[int] = set()
    for line in trace:
        if line.name == TraceEvent.ALLOC_EVENTQ:
            assert len(alive) < 4 + left
            alive.add(line.number("veventq_id"))
        elif line.succeeded:
            alive.discard(line.number("id"))
    assert len(alive) <= left


@pytest.mark.known_defect("HOT-03", symptom="descriptors: /dmabuf:")
@pytest.mark.known_defect("VEQ-06", symptom=r"Failed to free id: \d+ Device or resource busy")
@pytest.mark.covers("VEQ-06", "HOT-03")
@pytest.mark.long
@pytest.mark.guest(FIVE)
@pytest.mark.timeout(1200)
def test_nothing_is_left_behind(guest: Guest, host: Host) -> None:
    hot, counting = sum(not device.cold for device in guest.devices), Counting(guest)
    # QEMU and the kernel keep some objects from the first use on; they are not counted as growth.
    plug_and_eject(guest, hot)
    first = counting.take()
    plug_and_eject(guest, hot)
    of_a_turn = dma_bufs(counting.take()) - dma_bufs(first)
    with step(f"plug and unplug {ROUNDS} times"):
        plug_and_eject(guest, ROUNDS - hot)
    last, said = counting.take(), guest.qemu_messages().splitlines()
    others = unexplained(
        host.facts,
        last,
        first,
        said,
        plugs=ROUNDS + hot,
        plugged_dma_bufs=of_a_turn * ROUNDS // hot,
    )
    assert not others, "\n".join(others)
    left = [*last.growth(first), *said]
    assert not left, "\n".join(left)
