"""Plug and unplug many times: everything that was taken is given back."""

from __future__ import annotations

import re

import pytest

from harness.guest.census import Counting
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug
from harness.smmu.trace import TraceEvent
from harness.steps import step

#: Four SMMUs, so that a turn is four rounds; each device is the first and the last of its SMMU.
FOUR = GuestSpec(smmus=tuple(SmmuSpec(hot=(role,)) for role in ("edu", "iommu-testdev") * 2))
#: And one that keeps a device, so that QEMU keeps iommufd open, and in it what it did not free.
FIVE = GuestSpec(smmus=(*FOUR.smmus, SmmuSpec(devices=("nvme",))))
ROUNDS = 200

#: What the known defects are seen by, and nothing else that grows.
DMA_BUFS = r"descriptors: /dmabuf:"
BUSY = r"\S+ \S+: Failed to free id: \d+ Device or resource busy"
BUSY_OBJECTS = r"(IOMMU objects|highest IOMMU object): "


def turns(guest: Guest, rounds: int) -> None:
    hot = [device for device in guest.devices if not device.cold]
    for _ in range(rounds // len(hot)):
        plug(guest, *hot)
        eject(guest, *hot)


@pytest.mark.covers("VEQ-06")
@pytest.mark.guest(FOUR)
def test_the_last_device_frees_the_queue_and_the_next_allocates(guest: Guest) -> None:
    turns(guest, 8)
    trace = guest.trace().named(TraceEvent.ALLOC_EVENTQ, TraceEvent.FREE_ID)
    assert trace.count(TraceEvent.ALLOC_EVENTQ) == 8
    # All are freed before the next turn's come.
    alive: set[int] = set()
    for line in trace:
        if line.name == TraceEvent.ALLOC_EVENTQ:
            assert len(alive) < 4
            alive.add(line.number("veventq_id"))
        else:
            alive.discard(line.number("id"))
    assert not alive


@pytest.mark.known_defect("HOT-03", symptom="descriptors: /dmabuf:")
@pytest.mark.known_defect("VEQ-06", symptom=r"Failed to free id: \d+ Device or resource busy")
@pytest.mark.covers("VEQ-06", "HOT-03")
@pytest.mark.guest(FIVE)
@pytest.mark.timeout(1200)
def test_nothing_is_left_behind(guest: Guest) -> None:
    counting = Counting(guest)
    # What QEMU and the kernel keep once and for all they have after a turn.
    turns(guest, 4)
    first = counting.take()
    with step(f"plug and unplug {ROUNDS} times"):
        turns(guest, ROUNDS)
    grown = counting.take().growth(first)
    said = guest.qemu_messages().splitlines()
    busy = any(re.match(BUSY, one) for one in said)
    known = f"{DMA_BUFS}|{BUSY}|{BUSY_OBJECTS}" if busy else DMA_BUFS
    others = [one for one in grown + said if not re.match(known, one)]
    assert not others, "\n".join(others)
    assert not grown + said, "\n".join(grown + said)
