"""Control the iommufd boundary of a guest: give it rules for what passes between the kernel and
QEMU, and read its log of what passed, which is the fifth witness. The boundary itself runs on the
host: harness/boundary/on_host.

    GUEST = behind_boundary(GuestSpec(...))

    boundary.apply(Drop(2))          # the next two records are lost
    ...
    boundary.passages(mark)          # what came, and what QEMU got instead
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.boundary.on_host import rules
from harness.boundary.on_host.rules import FREQUENT, Address, Call, Rule, watched
from harness.errors import HarnessError, LabError, ProductError
from harness.guest.description import BoundarySpec, GuestSpec
from harness.guest.guest import Guest
from harness.host.tail import Tail
from harness.smmu.vevents import QueueType, VEvent
from harness.steps import step
from harness.waiting import wait_for

SMMUV3 = Address(QueueType.ARM_SMMUV3)
CMDQV = Address(QueueType.TEGRA241_CMDQV)

PACKAGE = "harness.boundary.on_host"


def behind_boundary(
    guest: GuestSpec,
    initial: Mapping[Address, Sequence[Rule]] | None = None,
    *,
    reads: bool = False,
    watches: Collection[Call] = (),
) -> GuestSpec:
    """Return the same guest behind a boundary, with rules that are in force from its start on.

    `reads` supervises QEMU's reads of queues too, which InterruptRead needs; it slows them down.
    `watches` are calls to supervise for rules that come later. It matters for those in FREQUENT,
    which are slowed down; all others are supervised, and those for which there is a rule.
    Raises HarnessError for a rule that cannot be used, or a queue that this guest cannot have.
    """
    chosen = dict(initial or {})
    for queue, new in chosen.items():
        _check(guest, queue, new, reads)
    named = {watched(rule) for new in chosen.values() for rule in new}
    names = tuple(call.name for call in FREQUENT if call in {*watches, *named})
    boundary = BoundarySpec(PACKAGE, reads, _written(chosen), names)
    return dataclasses.replace(guest, boundary=boundary)


def merging(guest: GuestSpec) -> GuestSpec:
    """Return the same guest as if the host's SMMUs merged equal events: the rule Merge is in force
    for the queue of each accelerated SMMU. A boundary that the guest has is kept, with its rules;
    one that has none is given one."""
    boundary = guest.boundary or BoundarySpec(PACKAGE)
    chosen = {
        Address.from_json(one["queue"]): [rules.from_json(rule) for rule in one["rules"]]
        for one in json.loads(boundary.rules)
    }
    for slot in range(sum(smmu.accel for smmu in guest.smmus)):
        there = chosen.setdefault(SMMUV3._replace(slot=slot), [])
        if rules.Merge() not in there:
            there.append(rules.Merge())
    boundary = dataclasses.replace(boundary, rules=_written(chosen))
    return dataclasses.replace(guest, boundary=boundary)


def _written(chosen: Mapping[Address, Sequence[Rule]]) -> str:
    """Return the rules of queues as the boundary's program reads them."""
    return json.dumps(
        [
            {"queue": list(queue), "rules": [rule.to_json() for rule in new]}
            for queue, new in chosen.items()
        ]
    )


def _check(guest: GuestSpec, queue: Address, new: Sequence[Rule], reads: bool) -> None:
    """Raise HarnessError for a queue that the guest cannot have, or a rule that does not fit it.
    The host is not asked."""
    accelerated = [smmu for smmu in guest.smmus if smmu.accel]
    if queue.kind is QueueType.TEGRA241_CMDQV:
        accelerated = [one for one in accelerated if dict(one.properties).get("cmdqv") != "off"]
    if not 0 <= queue.slot < len(accelerated):
        raise HarnessError(
            f"rules for queue {queue}: this guest has {len(accelerated)} SMMUs with such a queue",
            fix="name a queue of an accelerated SMMU that the guest's description has",
        )
    for rule in new:
        try:
            rule.check_fits(queue)
        except ValueError as problem:
            raise HarnessError(f"rule for queue {queue}: {problem}") from None
        if isinstance(rule, rules.ReadRule) and not reads:
            raise HarnessError(
                f"{rule.name}: this boundary does not supervise reads",
                fix="describe the guest with behind_boundary(..., reads=True)",
            )


@dataclass(frozen=True)
class Passage:
    """What the boundary did to records that came together: mostly one, with one sent for it.

    A record that a standing rule removed was `got` as it came, and nothing was sent for it. The
    sequence numbers of all other records are those that the standing rules gave them.

    Times are seconds of the host's wall clock: the kernel delivered the records at `arrived`, and
    QEMU's socket had the last of `sent` at `time`. The difference of the two is exact, even if that
    clock was set in between. `did` is the name of the rule, or `undelivered` if QEMU closed the
    queue, or ended, before it got more than `sent`.
    """

    time: float
    arrived: float
    queue: Address
    id: int
    did: str
    got: tuple[bytes, ...]
    sent: tuple[bytes, ...]

    def __str__(self) -> str:
        def numbers(records: Sequence[bytes]) -> str:
            return " ".join(_brief(record) for record in records) or "nothing"

        shown = numbers(self.got)
        if self.sent != self.got:
            shown += f" -> {numbers(self.sent)}"
        return f"{self.time:.6f} {self.queue} id {self.id}: {self.did}: {shown}"


def _brief(record: bytes) -> str:
    if len(record) < 8:
        return f"[{len(record)} bytes]"
    event = VEvent.decode(record)
    if event.is_lost_events:
        return f"#{event.sequence} LOST_EVENTS"
    return f"#{event.sequence} {event.data.hex()}"


@dataclass(frozen=True)
class Answered:
    """A call of QEMU's that the boundary saw. `did` is the name of the rule, or `pass`; `answer` is
    `ok` or the error's name. Of a batch of invalidations, `processed` are the `entries` that the
    kernel has carried out."""

    time: float
    queue: Address
    call: str
    did: str
    answer: str
    id: int | None = None
    entries: int | None = None
    processed: int | None = None

    def __str__(self) -> str:
        batch = "" if self.entries is None else f", {self.processed} of {self.entries} entries"
        place = f"{self.time:.6f} {self.queue} id {self.id}"
        return f"{place}: {self.call}: {self.did}: {self.answer}{batch}"


@dataclass(frozen=True)
class QueueState:
    """The state of a queue that QEMU has.

    `id` is the kernel's. `depth`, `received`, `delivered` and `waiting` count records; `left` are
    the rules that are not used up, without the standing rules, which never are.
    """

    address: Address
    id: int
    depth: int
    received: int
    delivered: int
    waiting: int
    left: tuple[Rule, ...]


def entries(lines: Iterable[str]) -> list[Passage | Answered]:
    """Parse lines of the boundary's log. Records that passed together are returned one by one.

    Raises ValueError for a line that the boundary cannot have written.
    """
    found: list[Passage | Answered] = []
    for line in lines:
        try:
            found += _entry(json.loads(line))
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as problem:
            raise ValueError(f"not a line of a boundary's log: {line[:200]!r}: {problem}") from None
    return found


def _entry(fields: dict[str, Any]) -> list[Passage | Answered]:
    queue, time = Address.from_json(fields["queue"]), float(fields["time"])
    if "call" in fields:
        answered = (fields["call"], fields["did"], fields["answer"])
        numbers = (fields.get(name) for name in ("id", "entries", "processed"))
        return [Answered(time, queue, *answered, *numbers)]
    got = _unpacked(fields["got"])
    sent = _unpacked(fields["sent"]) if "sent" in fields else got
    did, arrived = fields["did"], float(fields.get("arrived", time))
    if did == rules.Pass.name and sent == got:
        return [Passage(time, arrived, queue, fields["id"], did, (one,), (one,)) for one in got]
    return [Passage(time, arrived, queue, fields["id"], did, got, sent)]


def _unpacked(packed: list[Any]) -> tuple[bytes, ...]:
    """Return the records that relay._packed wrote."""
    if packed and isinstance(packed[0], int):
        count, data = packed[0], base64.b64decode(packed[1])
        size = len(data) // max(count, 1)
        if count < 1 or size * count != len(data):
            raise ValueError(f"{len(data)} bytes are not {count} records")
        return tuple(data[start : start + size] for start in range(0, len(data), size))
    return tuple(base64.b64decode(one) for one in packed)


class Boundary:
    """The boundary of a running guest. Its methods raise LabError if the boundary has ended."""

    def __init__(self, guest: Guest) -> None:
        if guest.spec.boundary is None:
            raise HarnessError(
                f"guest {guest.name} has no boundary", fix="describe it with behind_boundary(...)"
            )
        self.guest = guest

    # -- rules -----------------------------------------------------------------------------

    def apply(self, *new: Rule, queue: Address = SMMUV3) -> list[Rule]:
        """Replace a queue's rules by `new`, and return the old ones that were not used up.

        When this returns, the new rules are in force, and those that need no record have been
        applied if it was their turn. Standing rules stay. Raises HarnessError for a queue that does
        not exist, or a rule that cannot be used now.
        """
        spec = self.guest.spec
        assert spec.boundary
        for rule in new:
            if isinstance(rule, rules.StandingRule):
                raise HarnessError(
                    f"{rule.name}: an SMMU does not change while its guest runs, so this rule is "
                    "in force from the guest's start to its end, or not at all",
                    fix="describe the guest with behind_boundary(guest, {queue: [rule]})",
                )
        _check(spec, queue, new, spec.boundary.reads)
        for call in map(watched, new):
            if call is not None and call.name not in spec.boundary.watches:
                raise HarnessError(
                    f"this boundary does not supervise {call.name}, which QEMU calls often",
                    fix=f"describe the guest with behind_boundary(..., watches=[Call.{call.name}])",
                )
        shown = ", ".join(map(str, new)) or "no rules"
        with step(f"boundary, queue {queue}: {shown}"):
            wire = [rule.to_json() for rule in new]
            left = self._ask({"do": "rules", "queue": list(queue), "rules": wire})["left"]
        return [rules.from_json(one) for one in left]

    def release(self, queue: Address = SMMUV3) -> None:
        """End a Hold. Raises HarnessError if the queue's next rule is not a Hold."""
        with step(f"boundary, queue {queue}: release"):
            self._ask({"do": "release", "queue": list(queue)})

    def queues(self) -> list[QueueState]:
        """Return the queues that QEMU has now, in the order of their allocation."""
        return [
            QueueState(
                Address.from_json(one["queue"]),
                one["id"],
                one["depth"],
                one["received"],
                one["delivered"],
                one["waiting"],
                tuple(rules.from_json(rule) for rule in one["left"]),
            )
            for one in self._ask({"do": "status"})["queues"]
        ]

    def queue(self, address: Address = SMMUV3) -> QueueState:
        """Return one queue. Raises ProductError if QEMU has not allocated it."""
        for one in self.queues():
            if one.address == address:
                return one
        raise ProductError(f"guest {self.guest.name} has no queue {address}")

    def _ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        session = self.guest.session
        try:
            answer = session.connection.ask(self.guest.paths.control, request)
        except LabError:
            status = session.processes().get(self.guest.name)
            if status is None:
                raise
            raise LabError(
                f"the boundary of guest {self.guest.name} ended with status {status}, and QEMU "
                f"with it; its last messages:\n{self.guest.qemu_messages()[-2000:]}"
            ) from None
        if "error" in answer:
            raise HarnessError(f"boundary of guest {self.guest.name}: {answer['error']}")
        return answer

    # -- the log ---------------------------------------------------------------------------

    def mark(self) -> int:
        """Return the log's current size in bytes: what is logged later is since this mark."""
        return self.guest.host_file_size(self.guest.paths.boundary_log)

    def log(self, since: int = 0) -> Tail:
        """Return the log from a mark on, to be read as it grows; `entries` parses its lines."""
        return self.guest.host_tail(self.guest.paths.boundary_log, since)

    def entries(self, since: int = 0) -> list[Passage | Answered]:
        """Return all entries of the log from a mark on."""
        return entries(self.log(since).lines())

    def passages(self, since: int = 0, queue: Address = SMMUV3) -> list[Passage]:
        """Return what the boundary did to a queue's records, in the order of delivery."""
        found = self.entries(since)
        return [one for one in found if isinstance(one, Passage) and one.queue == queue]

    def answered(self, since: int = 0) -> list[Answered]:
        """Return the calls that the boundary saw."""
        return [one for one in self.entries(since) if isinstance(one, Answered)]

    def delivered(self, since: int = 0, queue: Address = SMMUV3) -> list[bytes]:
        """Return the records that QEMU got, in order, as it got them."""
        return [record for one in self.passages(since, queue) for record in one.sent]

    def wait_received(
        self, count: int, since: int, queue: Address = SMMUV3, *, deadline: float = 20.0
    ) -> list[Passage]:
        """Wait until the kernel has delivered at least `count` records from a mark on; return what
        the boundary did to them. Raises ProductError after `deadline` seconds."""
        seen: list[Passage] = []
        log = self.log(since)

        def came() -> int:
            return sum(len(one.got) for one in seen)

        def enough() -> bool:
            new = entries(log.lines())
            seen.extend(one for one in new if isinstance(one, Passage) and one.queue == queue)
            return came() >= count

        wait_for(
            f"{count} records at the boundary",
            enough,
            deadline=deadline,
            error=ProductError,
            last_seen=lambda: f"{came()} records",
        )
        return seen

    def wait_read(
        self, count: int, since: int, queue: Address = SMMUV3, *, deadline: float = 20.0
    ) -> None:
        """Wait until QEMU has read at least `count` records from a mark on, and has done what it
        does with them, though it may make nothing of them that could be seen. Raises ProductError
        after `deadline` seconds."""
        self.wait_received(count, since, queue, deadline=deadline)
        # The records are in QEMU's socket. QEMU answers its monitor in the thread that reads them;
        # the first two answers may be given before that thread has looked at the socket again.
        for _ in range(3):
            self.guest.monitor.execute("query-status")
