"""QEMU reports losses and overflows of the CMDQV's own event queue (type 2), as for the SMMU's.

A record of this queue is a map of the command queues in error. QEMU writes a trace line for each
map that is not empty.
"""

from __future__ import annotations

import errno
import functools
import itertools
import operator
import os
import struct

import pytest

from harness.boundary.client import CMDQV, Boundary, behind_boundary
from harness.boundary.on_host.rules import (
    BusyOnDestroy,
    Call,
    Delay,
    FailCall,
    Hold,
    Inject,
    InterruptRead,
    LostHeader,
    Rule,
)
from harness.devices import source_of
from harness.errors import HarnessError, ProductError
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.guest import description
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import plug
from harness.host.ability import ANY, WRITER, Ability
from harness.qmp import QmpRefusedError
from harness.smmu import loss
from harness.smmu.commands import sync
from harness.smmu.loss import Lost, Overflowed, Report, ShortRead
from harness.smmu.trace import TraceEvent
from harness.smmu.vevents import INT_MAX, QueueType, VEvent
from harness.waiting import wait_for
from suites.cmdqv.errors import CFGI_STE
from suites.placement.faults import check_faults

PLAIN = GuestSpec(smmus=(SmmuSpec(devices=(ANY,), properties=(("cmdqv", "on"),)),))
GUEST = behind_boundary(PLAIN, reads=True)
#: A guest whose first device is plugged while it runs.
LATER = behind_boundary(
    GuestSpec(smmus=(SmmuSpec(hot=(WRITER,), properties=(("cmdqv", "auto"),)),))
)
#: The command queues of the guest's CMDQV.
QUEUES = 2
WHOLE = QueueType.TEGRA241_CMDQV.record_bytes

pytestmark = [pytest.mark.needs("cmdqv"), pytest.mark.guest(GUEST)]


def error_map(sequence: int, bits: int) -> bytes:
    """Return a record with this sequence number, whose map has these bits."""
    return VEvent(sequence, struct.pack("<QQ", bits, 0)).encode()


def numbered(*sequences: int) -> list[Rule]:
    """Return rules that deliver records with these sequence numbers. The map of each is another
    than that of the record before. A map names only queues that the guest has, as hardware's do:
    the guest's driver follows any bit to a queue, without a check."""
    maps = itertools.cycle(range(1, 1 << QUEUES))
    return [Inject(error_map(number, bits)) for number, bits in zip(sequences, maps, strict=False)]


def received_maps(guest: Guest) -> list[int]:
    """Return the maps that QEMU received, in order."""
    texts = guest.trace().texts(TraceEvent.CMDQV_ERR_MAP)
    return [int(text.split()[-1].replace(":", ""), 16) for text in texts]


def deliver(guest: Guest, boundary: Boundary, *new: Rule) -> list[Report]:
    """Apply these rules to the queue, and return what QEMU then reports of it."""
    boundary.apply(*new, queue=CMDQV)
    return reports(guest, boundary)


def reports(guest: Guest, boundary: Boundary) -> list[Report]:
    """Wait until QEMU has read all whole records of the queue, and return what it reports of it."""
    if boundary.queue(CMDQV).left:
        raise HarnessError("rules were not used")
    whole = [
        struct.unpack("<Q", record[8:16])[0]
        for record in boundary.delivered(queue=CMDQV)
        if len(record) == WHOLE
    ]
    wait_for(
        "QEMU to take the records",
        lambda: received_maps(guest) == whole,
        deadline=10,
        error=ProductError,
        last_seen=lambda: f"{received_maps(guest)}, not {whole}",
    )
    kind = int(QueueType.TEGRA241_CMDQV)
    said = loss.messages(guest.qemu_messages())
    return [message.report for message in said if message.type == kind]


@pytest.mark.covers("LOSS-13")
def test_gaps_are_reported_with_their_size(guest: Guest, boundary: Boundary) -> None:
    reports = deliver(guest, boundary, *numbered(0, 1, 3, 6, 14, 1015, 1016))
    assert reports == [Lost(1), Lost(2), Lost(7), Lost(1000)]
    # Records out of order: QEMU takes a step back for a gap of nearly the whole range of numbers.
    # The test does not depend on how many bits QEMU counts that range with.
    *_, ahead, back, next_but_one = deliver(guest, boundary, *numbered(1018, 1017, 1019))
    assert (ahead, next_but_one) == (Lost(1), Lost(1))
    assert isinstance(back, Lost)
    assert back.count & INT_MAX == INT_MAX - 1


@pytest.mark.covers("LOSS-13")
def test_interrupted_reads_and_held_records_lose_nothing(guest: Guest, boundary: Boundary) -> None:
    first, second, *others = numbered(0, 1, 2, 3)
    interrupted = InterruptRead(errno.EINTR, 3)
    boundary.apply(interrupted, first, second, Hold(), *others, queue=CMDQV)
    wait_for(
        "QEMU to take the first two",
        lambda: received_maps(guest) == [0b01, 0b10],
        deadline=10,
        error=ProductError,
    )
    boundary.release(CMDQV)
    assert reports(guest, boundary) == []
    assert received_maps(guest) == [0b01, 0b10, 0b11, 0b01]
    answers = [one.answer for one in boundary.answered() if one.call == "read"]
    assert answers == ["EINTR"] * 3


@pytest.mark.covers("LOSS-13")
@pytest.mark.parametrize("seconds", [0.1, 1.0, 10.0])
def test_delayed_records_arrive_in_order(guest: Guest, boundary: Boundary, seconds: float) -> None:
    """Both queues meet an error, and the guest's driver hears of neither for a while. Hardware may
    tell of an error more than once."""
    boundary.apply(Delay(seconds, count=100), queue=CMDQV)
    cmdqv = GuestCmdqv(guest)

    for lvcmdq in range(QUEUES):
        cmdqv.give(lvcmdq, CFGI_STE, sync())

    wait_for(
        "QEMU to hear of both queues",
        lambda: functools.reduce(operator.or_, received_maps(guest), 0) == 0b11,
        deadline=seconds + 20,
        error=ProductError,
        last_seen=lambda: received_maps(guest),
    )
    boundary.apply(queue=CMDQV)
    assert reports(guest, boundary) == []
    for lvcmdq in range(QUEUES):
        cmdqv.wait_done(lvcmdq)  # the driver has replaced the command that failed
    late = [one for one in boundary.passages(queue=CMDQV) if one.did == Delay.name]
    assert late
    assert all(one.time - one.arrived >= seconds for one in late)


@pytest.mark.covers("LOSS-13")
@pytest.mark.guest(LATER)
def test_a_queue_that_is_busy_when_destroyed(guest: Guest, boundary: Boundary) -> None:
    """The first device brings the CMDQV, and what it needs after the queue fails: QEMU gives all
    back, but for the queue. The device is plugged again, and gets another queue."""
    device = guest.device(WRITER)
    boundary.apply(BusyOnDestroy(), queue=CMDQV)
    boundary.apply(FailCall(errno.ENOMEM, Call.HWPT_ALLOC))
    with pytest.raises(QmpRefusedError) as refused:
        guest.monitor.execute("device_add", **description.device_properties(device))
    assert "Failed to allocate hwpt" in refused.value.reason
    (old,) = (one.id for one in boundary.answered() if one.did == BusyOnDestroy.name)
    assert f"Failed to free id: {old} {os.strerror(errno.EBUSY)}" in guest.qemu_messages()

    plug(guest, device)

    calls = [(one.call, one.answer) for one in boundary.answered() if one.queue == CMDQV]
    assert calls == [("VEVENTQ_ALLOC", "ok"), ("DESTROY", "EBUSY"), ("VEVENTQ_ALLOC", "ok")]
    check_faults(source_of(guest, device, Ability.WRITE))


@pytest.mark.covers("LOSS-13")
def test_tracking_restarts_after_an_overflow(guest: Guest, boundary: Boundary) -> None:
    first, second, third = numbered(0, 20, 22)
    assert deliver(guest, boundary, first, LostHeader(5), second, third) == [Overflowed(), Lost(1)]


@pytest.mark.covers("LOSS-13")
def test_a_short_record_is_reported(guest: Guest, boundary: Boundary) -> None:
    first, last = numbered(0, 2)
    short = Inject(error_map(1, 1)[:20])
    assert deliver(guest, boundary, first, short, last) == [ShortRead(20, WHOLE), Lost(1)]


@pytest.mark.known_defect(
    "LOSS-07", symptom=r"Right contains one more item: ShortRead\(got=20, whole=24\)"
)
@pytest.mark.covers("LOSS-13", "LOSS-07")
def test_a_short_record_is_reported_after_an_overflow(guest: Guest, boundary: Boundary) -> None:
    (last,) = numbered(2)
    short = Inject(error_map(1, 1)[:20])
    reports = deliver(guest, boundary, LostHeader(0), short, last)
    assert reports == [Overflowed(), ShortRead(20, WHOLE)]


@pytest.mark.known_defect("LOSS-05", symptom=r"assert \[Lost\(count=2147483648\)\] == ")
@pytest.mark.covers("LOSS-13", "LOSS-05")
def test_the_wrap_is_no_loss(guest: Guest, boundary: Boundary) -> None:
    assert deliver(guest, boundary, *numbered(INT_MAX, 0, 1)) == []
