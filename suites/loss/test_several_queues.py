"""QEMU reports what goes wrong with each of its queues, also after another one's was reported."""

from __future__ import annotations

import errno
import os

import pytest

from harness.boundary.client import CMDQV, SMMUV3, Boundary, behind_boundary
from harness.boundary.on_host.rules import Inject, InterruptRead, LostHeader, Rule
from harness.devices import source
from harness.errors import ProductError
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import WRITER, Ability
from harness.smmu import loss
from harness.smmu.events import RECORD_BYTES
from harness.smmu.loss import Overflowed, ReadFailed, Report, ShortRead
from harness.smmu.vevents import QueueType, VEvent
from harness.waiting import wait_for

#: Behind each SMMU is a device of its own.
SMMUS = 2
TWO_SMMUS = behind_boundary(GuestSpec(smmus=(SmmuSpec(devices=(WRITER,)),) * SMMUS), reads=True)
WITH_CMDQV = behind_boundary(
    GuestSpec(smmus=(SmmuSpec(devices=(WRITER,), properties=(("cmdqv", "on"),)),))
)
WHOLE, SHORT = QueueType.ARM_SMMUV3.record_bytes, 20
SHORT_RECORD = VEvent(0, bytes(RECORD_BYTES)).encode()[:SHORT]


def reported(guest: Guest) -> list[tuple[int, Report]]:
    """Return QEMU's reports, each with the id of the queue that it is about."""
    return [(one.id, one.report) for one in loss.messages(guest.qemu_messages())]


def check_events(guest: Guest) -> None:
    """Check that an event of each SMMU arrives: by then QEMU has read all that was before it."""
    for smmu in range(SMMUS):
        writer, queue = source(guest, Ability.WRITE, smmu=smmu), guest.event_queue(smmu)
        mark = queue.mark()
        dma = writer.burst(1)
        writer.perform(dma)
        queue.expect(writer.expected(dma), mark)


@pytest.mark.known_defect(
    "LOSS-16", symptom=r"Right contains one more item: \(\d+, (Overflowed|ShortRead|ReadFailed)\("
)
@pytest.mark.covers("LOSS-16")
@pytest.mark.guest(TWO_SMMUS)
@pytest.mark.parametrize(
    ("rule", "report"),
    [
        pytest.param(LostHeader(), Overflowed(), id="overflow"),
        pytest.param(Inject(SHORT_RECORD), ShortRead(SHORT, WHOLE), id="short-read"),
        pytest.param(
            InterruptRead(errno.ENOMEM), ReadFailed(os.strerror(errno.ENOMEM)), id="failed-read"
        ),
    ],
)
def test_two_smmus_of_a_guest(guest: Guest, boundary: Boundary, rule: Rule, report: Report) -> None:
    expected = []
    for slot in range(SMMUS):
        address = SMMUV3._replace(slot=slot)
        boundary.apply(rule, queue=address)
        check_events(guest)
        expected.append((boundary.queue(address).id, report))

    assert reported(guest) == expected


@pytest.mark.covers("LOSS-16")
@pytest.mark.needs("cmdqv")
@pytest.mark.guest(WITH_CMDQV)
def test_an_smmu_and_its_cmdqv(guest: Guest, boundary: Boundary) -> None:
    expected = set()
    for address in (SMMUV3, CMDQV):
        boundary.apply(LostHeader(), queue=address)
        expected.add((boundary.queue(address).id, Overflowed()))

    wait_for(
        "QEMU to report that both queues overflowed",
        lambda: set(reported(guest)) == expected,
        deadline=10,
        error=ProductError,
        last_seen=lambda: reported(guest),
    )
