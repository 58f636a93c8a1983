"""The boundary relays the records of all queues: by their rules, in time, until QEMU hangs up."""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.boundary.on_host import rules
from harness.boundary.on_host.queues import BATCH, Queues
from harness.boundary.on_host.relay import Log, Queue
from harness.boundary.on_host.rules import Address, Rule
from harness.boundary.on_host.script import Decision
from harness.smmu.vevents import QueueType, VEvent, lost_events

SMMU, CMDQV = QueueType.ARM_SMMUV3, QueueType.TEGRA241_CMDQV
#: What the monotonic clock says unless a test sets it.
NOW = 5.0


def record(sequence: int, data: bytes | None = None) -> bytes:
    return VEvent(sequence, data or sequence.to_bytes(SMMU.data_bytes, "little")).encode()


class Relayed:
    """Queues with their log. A pipe is the kernel's file of each queue: a read of it takes as many
    bytes as it has."""

    def __init__(self, log: Path) -> None:
        self.selector = selectors.DefaultSelector()
        self._path = log
        self.log = Log(str(log))
        self.queues = Queues(self.selector, self.log)
        self.kernel: dict[int, int] = {}
        self.qemu: dict[int, socket.socket] = {}
        self._files: list[int] = []

    def queue(self, identity: int = 7, *new: Rule, slot: int = 0) -> Queue:
        """Make a queue and adopt it."""
        address = Address(SMMU, slot)
        self.queues.rules_at(address).load(new)
        real, self.kernel[identity] = os.pipe()
        os.set_blocking(real, False)
        self._files += [real, self.kernel[identity]]
        ours, self.qemu[identity] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, self.qemu[identity]):
            end.setblocking(False)
        made = Queue(*address, identity, 64, real, ours, 9, self.queues.rules_at(address))
        self.queues.adopt(made)
        return made

    def come(self, *records: bytes, to: int = 7) -> None:
        """Have records come from the kernel."""
        assert os.write(self.kernel[to], b"".join(records)) == sum(map(len, records))

    def turn(self) -> int:
        """Call what is ready, as the boundary's loop does; return how many were."""
        ready = self.selector.select(0)
        for key, _ in ready:
            key.data()
        return len(ready)

    def received(self, identity: int = 7) -> list[bytes]:
        """Return what QEMU can read now, one entry for each read."""
        got = []
        while True:
            try:
                got.append(self.qemu[identity].recv(4096))
            except BlockingIOError:
                return got

    def logged(self, *what: str) -> list[Any]:
        """Return these fields of all entries of the log."""
        self.log.flush()
        entries = map(json.loads, self._path.read_text().splitlines())
        return [tuple(entry[name] for name in what) for entry in entries]

    def close(self) -> None:
        for one in self.qemu.values():
            one.close()
        for queue in self.queues.by_id.values():
            queue.ours.close()
        for number in self._files:
            os.close(number)
        self.selector.close()


@pytest.fixture
def relayed(tmp_path: Path) -> Iterator[Relayed]:
    one = Relayed(tmp_path / "log")
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stop the monotonic clock; the value sets it."""
    now = [NOW]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def put(to: float) -> None:
        now[0] = to

    return put


def test_rules_stay_at_their_address(relayed: Relayed) -> None:
    at = relayed.queues.rules_at(Address(SMMU, 0))
    assert relayed.queues.rules_at(Address(SMMU, 0)) is at
    assert relayed.queues.rules_at(Address(SMMU, 1)) is not at
    assert relayed.queues.rules_at(Address(CMDQV, 0)) is not at


def test_a_queue_is_found_by_its_address(relayed: Relayed) -> None:
    assert relayed.queues.at(Address(SMMU, 0)) is None
    first, second = relayed.queue(7), relayed.queue(8, slot=1)
    assert relayed.queues.at(Address(SMMU, 0)) is first
    assert relayed.queues.at(Address(SMMU, 1)) is second
    assert relayed.queues.at(Address(SMMU, 2)) is None
    assert relayed.queues.by_id == {7: first, 8: second}


def test_records_pass_and_are_logged_as_they_came(relayed: Relayed) -> None:
    queue = relayed.queue()
    records = [record(1), record(2)]
    assert relayed.turn() == 0
    relayed.come(*records)
    assert relayed.turn() == 1
    assert relayed.received() == records
    assert (queue.received, queue.delivered) == (2, 2)
    assert relayed.logged("did", "id") == [("pass", 7)]


def test_a_read_takes_a_batch(relayed: Relayed) -> None:
    queue = relayed.queue()
    relayed.come(*map(record, range(BATCH + 1)))
    for received in (64, 65):
        relayed.turn()
        assert queue.received == received
    assert relayed.received() == [record(number) for number in range(BATCH + 1)]


def test_records_pass_by_the_rules_of_their_address_only(relayed: Relayed) -> None:
    relayed.queue(7, rules.Drop())
    relayed.queue(8, slot=1)
    for identity in (7, 8):
        relayed.come(record(1), record(2), to=identity)
    assert relayed.turn() == 2
    assert relayed.received(7) == [record(2)]
    assert relayed.received(8) == [record(1), record(2)]
    assert relayed.logged("did", "id") == [("drop", 7), ("pass", 7), ("pass", 8)]


def test_the_last_record_that_passed_is_known_to_later_rules(relayed: Relayed) -> None:
    queue = relayed.queue()
    relayed.come(record(1), record(5))
    relayed.turn()
    assert relayed.received() == [record(1), record(5)]
    queue.rules.load([rules.LostHeader()])
    relayed.queues.advance(queue)
    assert relayed.received() == [lost_events(6).encode()]


def test_an_empty_queue_is_no_matter(relayed: Relayed) -> None:
    queue = relayed.queue(7, rules.Drop())
    relayed.queues.on_kernel_ready(queue)  # another read was faster
    os.close(relayed.kernel[7])
    relayed._files.remove(relayed.kernel[7])
    relayed.queues.on_kernel_ready(queue)
    assert (queue.received, relayed.received()) == (0, [])
    assert queue.script.left == [rules.Drop()]


def test_a_standing_rule_takes_records_before_all_others(
    relayed: Relayed, clock: Callable[[float], None]
) -> None:
    queue = relayed.queue(7, rules.Merge(), rules.Drop())
    same, other = b"s" * SMMU.data_bytes, b"o" * SMMU.data_bytes
    relayed.come(record(1, same), record(2, same), record(3, same), record(4, other))
    relayed.turn()
    assert relayed.received() == [record(2, other)]
    assert (queue.received, queue.removed[rules.Merge()]) == (4, 2)
    relayed.come(record(5, same), record(6, same))
    relayed.turn()
    assert relayed.received() == [record(3, same)]
    assert queue.removed[rules.Merge()] == 3
    assert relayed.logged("did") == [
        *(("merge",), ("merge",), ("drop",), ("pass",)),
        *(("merge",), ("pass",)),
    ]


def test_a_record_is_delivered_when_it_is_due(
    relayed: Relayed, clock: Callable[[float], None]
) -> None:
    first = relayed.queue(7, rules.Delay(2.0))
    relayed.queue(8, rules.Delay(3.0), slot=1)
    relayed.queue(9, slot=2)
    assert relayed.queues.next_due() is None
    for identity in (8, 7):
        relayed.come(record(1), to=identity)
        relayed.turn()
    assert (first.next_due(), relayed.queues.next_due()) == (NOW + 2, NOW + 2)
    clock(NOW + 1.9)
    relayed.queues.deliver_due()
    assert (relayed.received(7), relayed.received(8)) == ([], [])
    clock(NOW + 2)
    relayed.queues.deliver_due()
    assert (relayed.received(7), relayed.received(8)) == ([record(1)], [])
    assert relayed.queues.next_due() == NOW + 3
    clock(NOW + 4)
    relayed.queues.deliver_due()
    assert relayed.received(8) == [record(1)]
    assert relayed.queues.next_due() is None


def fill(relayed: Relayed) -> list[bytes]:
    """Send records until QEMU's socket is full; return what was sent, as much as QEMU is to get."""
    sent: list[bytes] = []
    queue = relayed.queues.by_id[7]
    while not queue.blocked:
        batch = [record(len(sent) + at) for at in range(8)]
        relayed.come(*batch)
        relayed.turn()
        sent += batch
        assert len(sent) < 100_000
    return sent


def test_a_reader_that_does_not_read_stops_the_relay_and_loses_nothing(relayed: Relayed) -> None:
    queue = relayed.queue()
    sent = fill(relayed)
    assert relayed.queues.next_due() is None
    relayed.come(record(len(sent)))
    assert relayed.turn() == 0, "the kernel's queue is not read meanwhile"
    got = relayed.received()
    assert 0 < len(got) < len(sent)
    assert relayed.turn() == 1, "QEMU has read some"
    assert not queue.blocked
    assert relayed.turn() == 1, "the kernel's queue is read again"
    assert [*got, *relayed.received()] == [*sent, record(len(sent))]
    assert relayed.turn() == 0, "nothing is waited for that is always ready"


def test_what_the_boundary_keeps_is_undelivered_when_it_closes(relayed: Relayed) -> None:
    queue = relayed.queue()
    fill(relayed)
    relayed.queue(8, slot=1)
    waiting = len(queue.outbox)
    done = len(relayed.logged("did"))
    relayed.queues.close()
    assert relayed.logged("did", "id")[done:] == [("undelivered", 7)] * waiting
    assert not queue.outbox
    relayed.queues.close()
    assert len(relayed.logged("did")) == done + waiting


def hung_up(relayed: Relayed, queue: Queue) -> bool:
    """Return whether a queue is relayed no more. Its number at QEMU is no file's then."""
    registered = {key.fd for key in relayed.selector.get_map().values()}
    assert queue.closed == (queue.at_qemu < 0) == (queue.real not in registered)
    assert os.fstat(queue.real), "it is closed when QEMU destroys the queue"
    return queue.closed


def test_qemu_closes_its_end(relayed: Relayed, clock: Callable[[float], None]) -> None:
    queue = relayed.queue(7, rules.Delay(2.0))
    relayed.come(record(1))
    relayed.turn()
    assert not hung_up(relayed, queue)
    relayed.qemu[7].close()
    assert relayed.turn() == 1
    assert hung_up(relayed, queue)
    assert len(relayed.selector.get_map()) == 0
    assert relayed.logged("did") == [("undelivered",)]
    relayed.come(record(2))
    assert relayed.turn() == 0
    # When it destroys the queue, too, there is nothing left to do.
    relayed.queues.hang_up(queue)
    assert relayed.logged("did") == [("undelivered",)]


def test_qemu_has_closed_its_end_before_it_is_sent_a_record(relayed: Relayed) -> None:
    queue = relayed.queue()
    relayed.come(record(1))
    relayed.qemu[7].close()
    relayed.queues.on_kernel_ready(queue)
    assert hung_up(relayed, queue)
    assert (queue.received, relayed.logged("did")) == (1, [("undelivered",)])


def test_qemu_is_killed_with_records_that_it_has_not_read(relayed: Relayed) -> None:
    queue = relayed.queue()
    relayed.come(record(1))
    relayed.turn()
    relayed.qemu[7].close()
    with pytest.raises(ConnectionResetError):
        queue.ours.recv(1)  # what an end that is closed so says once
    other = relayed.queue(8, slot=1)
    relayed.come(record(1), to=8)
    relayed.turn()
    relayed.qemu[8].close()
    relayed.turn()
    assert hung_up(relayed, other)


def test_a_queue_that_is_closed_already_delivers_nothing(relayed: Relayed) -> None:
    queue = relayed.queue()
    relayed.queues.hang_up(queue)
    queue.outbox.append(Decision("pass", (record(1),), (record(1),), NOW, NOW))
    relayed.queues.advance(queue)
    assert relayed.logged("did") == [("undelivered",)]
    assert not queue.outbox


def test_a_message_of_qemus_is_no_end(relayed: Relayed) -> None:
    queue = relayed.queue()
    relayed.qemu[7].send(b"x")
    assert relayed.turn() == 1
    assert not hung_up(relayed, queue)
    relayed.come(record(1))
    relayed.turn()
    assert relayed.received() == [record(1)]


def test_a_queue_that_is_new_gets_what_its_rules_send(relayed: Relayed) -> None:
    relayed.queue(7, rules.Inject(record(1)))
    assert relayed.received() == [record(1)]


def test_a_queue_that_is_new_gets_nothing_of_the_one_before(
    relayed: Relayed, clock: Callable[[float], None]
) -> None:
    queue = relayed.queue(7, rules.Delay(60.0), rules.Hold())
    relayed.come(record(40), record(41))
    relayed.turn()
    relayed.queues.hang_up(relayed.queues.by_id.pop(queue.id))
    assert relayed.logged("did", "sent") == 2 * [("undelivered", [])]
    # The kernel numbers the events of each queue from 0.
    relayed.queue(8, rules.LostHeader(), rules.Pass())
    relayed.come(record(1), to=8)
    relayed.turn()
    assert relayed.received(8) == [lost_events(0).encode(), record(1)]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINTR, errno.ENOMEM])
def test_a_kernel_that_has_nothing_now_is_asked_again(
    relayed: Relayed, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It has no memory, say, for the copy of a LOST_EVENTS header."""
    queue = relayed.queue()
    relayed.come(record(1))

    def refuse(file: int, size: int) -> bytes:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", refuse)
        assert relayed.turn() == 1
    assert queue.received == 0
    relayed.turn()
    assert relayed.received() == [record(1)]


def test_a_kernel_that_cannot_be_read_is_an_error(relayed: Relayed) -> None:
    queue = relayed.queue()
    folder = os.open("/", os.O_RDONLY)
    relayed._files.append(folder)
    queue.real, real = folder, queue.real
    with pytest.raises(IsADirectoryError) as told:
        relayed.queues.on_kernel_ready(queue)
    assert told.value.errno == errno.EISDIR
    queue.real = real
