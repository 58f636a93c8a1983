"""Decide what QEMU is sent for the records of one queue, under its rules. Pure: no I/O, no clock.

Part of the boundary's program on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from harness.boundary.on_host import rules
from harness.boundary.on_host.rules import RecordRule, Rule, Turn
from harness.smmu.vevents import U32_MAX, VEvent

#: The rule that is used when no other is left.
_PASS = rules.Pass()


@dataclass(frozen=True)
class Decision:
    """What QEMU is `sent`, from time `due` on, for the records `got`, which came at `arrived`.

    `did` is the name of the rule. Times are seconds of the caller's clock.
    """

    did: str
    got: tuple[bytes, ...]
    sent: tuple[bytes, ...]
    arrived: float
    due: float


class Script:
    """The record rules of one queue, and the records that wait for them."""

    def __init__(self) -> None:
        self._rules: deque[RecordRule] = deque()
        self._used = 0  # how much of the first rule's count
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._last_due = 0.0
        self._last_sequence = U32_MAX

    @property
    def idle(self) -> bool:
        """Return whether no rule is left and no record waits, so that the next record passes."""
        return not self._rules and not self._waiting

    @property
    def left(self) -> list[Rule]:
        """Return the rules that are not used up, the first one with the rest of its count."""
        left: list[Rule] = list(self._rules)
        if left and self._used:
            left[0] = left[0].rest(self._used)
        return left

    @property
    def waiting(self) -> int:
        """Return how many records came and are not decided on."""
        return len(self._waiting)

    def load(self, new: Sequence[RecordRule]) -> list[Rule]:
        """Replace the rules; return the old ones that were not used up. Records that wait are
        decided on by the new rules."""
        left = self.left
        self._rules, self._used = deque(new), 0
        return left

    def release(self) -> None:
        """End the Hold whose turn it is. Raises ValueError if there is none."""
        if not (self._rules and self._rules[0].holds):
            raise ValueError("nothing is held")
        self._next()

    def abandon(self) -> list[Decision]:
        """Forget what belongs to the queue, which has ended: all but the rules. Return that its
        records that wait are not sent."""
        waiting = [Decision("", (record,), (), came, came) for came, record in self._waiting]
        self._waiting.clear()
        self._last_due, self._last_sequence = 0.0, U32_MAX
        return waiting

    def feed(self, records: Sequence[bytes], now: float) -> None:
        """Add records that came at `now`, in order."""
        self._waiting.extend((now, record) for record in records)

    def passed(self, last: bytes) -> None:
        """Note that records passed without a decision, while the script was idle; `last` is the
        last of them."""
        self._last_sequence = VEvent.decode(last).sequence

    def decide(self, now: float) -> list[Decision]:
        """Return all decisions that can be made now, in order."""
        out: list[Decision] = []
        while True:
            decision = self._decide_one(now)
            if decision is None:
                return out
            for record in decision.sent:
                if len(record) >= 8:
                    self._last_sequence = VEvent.decode(record).sequence
            # No record overtakes a delayed one.
            self._last_due = max(self._last_due, decision.due)
            out.append(dataclasses.replace(decision, due=self._last_due))

    def _decide_one(self, now: float) -> Decision | None:
        rule = self._rules[0] if self._rules else _PASS
        if rule.holds or len(self._waiting) < rule.needs:
            return None
        taken = [self._waiting.popleft() for _ in range(rule.needs)]
        got = tuple(record for _, record in taken)
        # A rule that needs no record counts from its turn.
        arrived = taken[-1][0] if taken else now
        sent = rule.sent(got, Turn(self._used, self._last_sequence))
        if self._rules:
            self._used += 1
            if self._used >= getattr(rule, "count", 1):
                self._next()
        return Decision(rule.name, got, sent, arrived, arrived + rule.wait)

    def _next(self) -> None:
        self._rules.popleft()
        self._used = 0
