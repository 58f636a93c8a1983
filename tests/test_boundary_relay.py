"""A queue of the boundary keeps its rules, delivers what is due, and logs what it did."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.boundary.on_host import rules
from harness.boundary.on_host.relay import AddressRules, Log, Queue, connected, consume
from harness.boundary.on_host.rules import Address, Call
from harness.boundary.on_host.script import Decision
from harness.smmu.vevents import QueueType


def decision(due: float, *sent: bytes, got: tuple[bytes, ...] | None = None) -> Decision:
    return Decision("pass", sent if got is None else got, sent, due, due)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield our end of a queue's socket, and QEMU's."""
    ours, qemus = connected()
    with ours, qemus:
        ours.setblocking(False)
        qemus.setblocking(False)
        yield ours, qemus


def queue(ours: socket.socket) -> Queue:
    return Queue(QueueType.TEGRA241_CMDQV, 2, 7, 64, -1, ours, 35, AddressRules())


def test_rules_of_each_sort_replace_those_of_all_sorts_but_standing_ones() -> None:
    at = AddressRules()
    drop, fail, interrupt = rules.Drop(2), rules.FailCall(), rules.InterruptRead()
    assert at.load([rules.Merge(), drop, fail, interrupt]) == []
    assert (at.script.left, at.calls, at.reads) == ([drop], [fail], [interrupt])
    assert at.load([rules.Merge(), rules.Hold()]) == [drop, fail, interrupt]
    assert (at.script.left, at.calls, at.reads) == ([rules.Hold()], [], [])
    assert at.standing == [rules.Merge()]


def test_a_rule_is_used_up_one_count_at_a_time() -> None:
    waiting = [rules.Depth(8), rules.FailCall(count=2), rules.FailCall(call=Call.MMAP)]
    used = consume(waiting, rules.FailCall)
    assert used == rules.FailCall(count=2)
    assert waiting == [rules.Depth(8), rules.FailCall(), rules.FailCall(call=Call.MMAP)]
    used = consume(waiting, rules.FailCall, lambda rule: rule.call is Call.MMAP)
    assert used == rules.FailCall(call=Call.MMAP)
    assert consume(waiting, rules.FailCall) == rules.FailCall()
    assert waiting == [rules.Depth(8)]
    assert consume(waiting, rules.FailCall) is None
    assert consume(waiting, rules.Depth, lambda rule: rule.events == 9) is None
    assert waiting == [rules.Depth(8)]


def test_a_queues_socket_holds_as_much_on_any_host(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = socket.socketpair

    def of_a_tuned_host(*kind: int) -> tuple[socket.socket, socket.socket]:
        ends = pair(*kind)
        # Only an administrator may set more than the default.
        ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        return ends

    monkeypatch.setattr(socket, "socketpair", of_a_tuned_host)
    ours, qemus = connected()
    with ours, qemus:
        ours.setblocking(False)
        held = 0
        with contextlib.suppress(BlockingIOError):
            while ours.send(bytes(QueueType.ARM_SMMUV3.record_bytes)):
                held += 1
    assert 200 < held < 400


def test_only_what_is_due_is_delivered(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, qemus = ends
    one = queue(ours)
    first, second, third = decision(1.0, b"a", b"b"), decision(2.0), decision(3.0, b"c")
    one.outbox.extend([first, second, third])
    assert one.next_due() == 1.0
    assert [*one.deliver(0.5)] == []
    assert [*one.deliver(2.0)] == [first, second]
    assert (one.next_due(), one.delivered, one.sent) == (3.0, 2, 0)
    assert [qemus.recv(9), qemus.recv(9)] == [b"a", b"b"]
    assert [*one.deliver(3.0)] == [third]
    assert (one.next_due(), one.delivered, one.blocked) == (None, 3, False)
    assert qemus.recv(9) == b"c"


def read(qemus: socket.socket) -> list[bytes]:
    """Return what QEMU can read now, one entry for each read."""
    got = []
    while True:
        try:
            got.append(qemus.recv(9))
        except BlockingIOError:
            return got


def test_a_full_socket_stops_a_decision_in_the_middle(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, qemus = ends
    one = queue(ours)
    records = [number.to_bytes(4, "big") for number in range(5000)]
    one.outbox.extend([decision(1.0, *records), decision(1.0, b"last")])
    assert [*one.deliver(1.0)] == []
    assert one.blocked
    assert one.next_due() is None
    assert 0 < one.sent == one.delivered < len(records)
    got = read(qemus)
    while one.outbox:
        assert [*one.deliver(1.0)] or one.blocked
        got += read(qemus)
    assert got == [*records, b"last"]
    assert (one.delivered, one.sent, one.blocked) == (len(records) + 1, 0, False)


def test_a_queue_knows_its_address_its_rules_and_its_end(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = ends
    one = queue(ours)
    assert one.address == Address(QueueType.TEGRA241_CMDQV, 2)
    assert one.script is one.rules.script
    assert (one.received, one.delivered, one.sent, one.blocked) == (0, 0, 0, False)
    assert not one.closed
    ours.close()
    assert one.closed


def test_the_first_descriptor_is_an_open_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that was started without a standard input may get the number 0 for a socket."""
    with socket.socket(socket.AF_UNIX) as one:
        made = queue(one)
        monkeypatch.setattr(socket.socket, "fileno", lambda _: 0)
        assert not made.closed


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_has_what_came_and_what_was_sent_instead(
    tmp_path: Path, ends: tuple[socket.socket, socket.socket]
) -> None:
    log = Log(str(tmp_path / "log"))
    one = queue(ends[0])
    arrived = time.monotonic() - 100.0
    before = time.time()
    for done in (
        Decision("pass", (b"ab",), (b"ab",), arrived, arrived),
        Decision("drop", (b"ab", b"cd"), (), arrived, arrived),
        Decision("short", (b"abc", b"d"), (b"a",), arrived, arrived),
    ):
        log.decision(one, done)
    log.decision(one, decision(arrived, b"x"), "undelivered")
    log.flush()
    passed, dropped, short, undelivered = entries = logged(tmp_path / "log")
    for entry in entries:
        assert (entry["queue"], entry["id"]) == ([2, 2], 7)
        assert before <= entry["time"] <= time.time()
        assert 100.0 <= entry["time"] - entry["arrived"] < 110.0
    assert [entry["did"] for entry in entries] == ["pass", "drop", "short", "undelivered"]
    assert passed["got"] == [base64.b64encode(b"ab").decode()]
    assert "sent" not in passed
    assert dropped["got"] == [2, base64.b64encode(b"abcd").decode()]
    assert dropped["sent"] == []
    assert short["got"] == [base64.b64encode(one).decode() for one in (b"abc", b"d")]
    assert short["sent"] == [base64.b64encode(b"a").decode()]
    assert undelivered["got"] == [base64.b64encode(b"x").decode()]


def test_the_log_has_the_answers_of_calls(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"))
    for error in (0, errno.ENOMEM, 9999):
        log.call("alloc", Address(QueueType.ARM_SMMUV3, 1), "fail_call", error, depth=4)
    log.flush()
    entries = logged(tmp_path / "log")
    assert [entry["answer"] for entry in entries] == ["ok", "ENOMEM", "9999"]
    assert all(entry["queue"] == [1, 1] and entry["depth"] == 4 for entry in entries)
    assert (entries[0]["call"], entries[0]["did"]) == ("alloc", "fail_call")


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    for did in ("one", "two"):
        log = Log(str(tmp_path / "log"))
        log.call("alloc", Address(QueueType.ARM_SMMUV3), did, 0)
        log.flush()
    assert [entry["did"] for entry in logged(tmp_path / "log")] == ["one", "two"]
