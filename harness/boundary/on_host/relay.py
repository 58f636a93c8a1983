"""Keep one queue of the boundary: its rules, its records on their way to QEMU, and its log.

Part of the boundary's program on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import base64
import errno
import json
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harness.boundary.on_host.rules import (
    Address,
    CallRule,
    ReadRule,
    RecordRule,
    Rule,
    StandingRule,
)
from harness.boundary.on_host.script import Decision, Script
from harness.smmu.vevents import QueueType

#: The size of a queue's socket, in bytes: Linux's own default, half of what SO_SNDBUF tells. A host
#: may be tuned for its network, so that its sockets hold thousands of records: QEMU would hardly
#: ever lose any.
_SOCKET_BYTES = 106_496


def connected() -> tuple[socket.socket, socket.socket]:
    """Return our end and QEMU's of the socket that QEMU gets in place of a queue's file. It holds
    some 270 records on any host."""
    ours, qemus = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    return ours, qemus


@dataclass
class AddressRules:
    """The rules of one address. They stay when the queue there is destroyed."""

    script: Script = field(default_factory=Script)
    calls: list[CallRule] = field(default_factory=list)
    reads: list[ReadRule] = field(default_factory=list)
    standing: list[StandingRule] = field(default_factory=list)

    def load(self, new: Sequence[Rule]) -> list[Rule]:
        """Replace all rules but the standing ones, to which new ones are added; return the old ones
        that were not used up."""
        added = [rule for rule in new if isinstance(rule, StandingRule)]
        # A rule that is given twice is in force once.
        self.standing = list(dict.fromkeys([*self.standing, *added]))
        left: list[Rule] = [*self.calls, *self.reads]
        self.calls = [rule for rule in new if isinstance(rule, CallRule)]
        self.reads = [rule for rule in new if isinstance(rule, ReadRule)]
        return [*self.script.load([one for one in new if isinstance(one, RecordRule)]), *left]


_Waiting = TypeVar("_Waiting", bound=Rule)


def consume(
    waiting: list[Any], kind: type[_Waiting], fits: Callable[[_Waiting], bool] = lambda _: True
) -> _Waiting | None:
    """Use up one count of the first rule of a kind that fits, and return the rule; None if there is
    none."""
    for index, rule in enumerate(waiting):
        if isinstance(rule, kind) and fits(rule):
            if rule.to_json()["count"] == 1:
                del waiting[index]
            else:
                waiting[index] = rule.rest(1)
            return rule
    return None


@dataclass
class Queue:
    """A vEVENTQ that QEMU has. `real` is the kernel's file, `ours` our end of QEMU's socket.

    `outbox` are decisions that are not delivered completely; `blocked` says that QEMU's socket is
    full. `received` and `delivered` count records, `removed` those that each standing rule removed.
    """

    kind: QueueType
    slot: int
    id: int
    depth: int
    real: int
    ours: socket.socket
    at_qemu: int  # the number of the socket's descriptor in QEMU
    rules: AddressRules
    outbox: deque[Decision] = field(default_factory=deque)
    sent: int = 0  # how many records of the outbox's first decision
    blocked: bool = False
    received: int = 0
    delivered: int = 0
    removed: Counter[StandingRule] = field(default_factory=Counter)

    @property
    def closed(self) -> bool:
        """Return whether QEMU has closed its end, or has destroyed the queue."""
        return self.ours.fileno() < 0

    @property
    def script(self) -> Script:
        """Return the record rules of the queue's address."""
        return self.rules.script

    @property
    def address(self) -> Address:
        """Return the queue's address at the boundary."""
        return Address(self.kind, self.slot)

    def deliver(self, now: float) -> Iterable[Decision]:
        """Send records that are due, until QEMU's socket is full; yield each decision that has been
        carried out. Raises OSError if QEMU has closed its end."""
        self.blocked = False
        while self.outbox and self.outbox[0].due <= now:
            first = self.outbox[0]
            while self.sent < len(first.sent):
                try:
                    self.ours.send(first.sent[self.sent])
                except BlockingIOError:
                    self.blocked = True
                    return
                self.sent += 1
                self.delivered += 1
            self.outbox.popleft()
            self.sent = 0
            yield first

    def next_due(self) -> float | None:
        """Return when the next delivery is due, by the monotonic clock; None if none can be
        made."""
        return self.outbox[0].due if self.outbox and not self.blocked else None


class Log:
    """The log of a boundary: one JSON object a line, with times in seconds of the host's wall
    clock."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("a", encoding="ascii")

    def decision(self, queue: Queue, decision: Decision, did: str = "") -> None:
        """Log a decision, whose times are the monotonic clock's, as carried out now; with `did` in
        place of its rule's name if given."""
        now, elapsed = time.time(), time.monotonic() - decision.arrived
        entry: dict[str, Any] = {"time": now, "queue": list(queue.address), "id": queue.id}
        entry["did"] = did or decision.did
        entry["arrived"] = now - elapsed
        entry["got"] = _packed(decision.got)
        if decision.sent != decision.got:
            entry["sent"] = _packed(decision.sent)
        self._write(entry)

    def call(self, what: str, address: Address, did: str, error: int, **more: object) -> None:
        """Log a call of QEMU's that was answered with an errno, or 0, and more fields."""
        answer = errno.errorcode.get(error, str(error)) if error else "ok"
        entry = {"time": time.time(), "queue": list(address), "call": what, "did": did}
        self._write({**entry, "answer": answer, **more})

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")

    def flush(self) -> None:
        """Write the log to its file, for readers."""
        self._file.flush()


def _packed(records: Sequence[bytes]) -> Any:
    """Return records as JSON: several of one size as [NUMBER, BASE64 OF ALL], else a list with the
    base64 of each."""
    if len(records) > 1 and len({len(record) for record in records}) == 1:
        return [len(records), base64.b64encode(b"".join(records)).decode()]
    return [base64.b64encode(record).decode() for record in records]
