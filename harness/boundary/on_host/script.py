"""What becomes of the records of one queue under its rules. Pure: no I/O, no clock of its own.

Also part of the boundary's supervisor on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from harness.boundary.on_host import rules
from harness.boundary.on_host.rules import RecordRule, Rule, Turn
from harness.smmu.vevents import U32_MAX, VEvent

#: Once no rule is left.
_PASS = rules.Pass()


@dataclass(frozen=True)
class Decision:
    """What is to be delivered, from time `due` on, for what came at `arrived`."""

    did: str
    got: tuple[bytes, ...]
    sent: tuple[bytes, ...]
    arrived: float
    due: float


class Script:
    """The record rules of one queue, and the records that wait for them."""

    def __init__(self) -> None:
        self._rules: deque[RecordRule] = deque()
        self._used = 0  # of the first rule's count
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._last_due = 0.0
        self._last_sequence = U32_MAX

    @property
    def idle(self) -> bool:
        """No rule is left and no record waits: whatever comes passes."""
        return not self._rules and not self._waiting

    @property
    def left(self) -> list[Rule]:
        """The rules that are not used up, the first one with what is left of its count."""
        left: list[Rule] = list(self._rules)
        if left and self._used:
            fields = left[0].to_json()
            left[0] = rules.from_json({**fields, "count": fields["count"] - self._used})
        return left

    @property
    def waiting(self) -> int:
        """Records that came and are not decided."""
        return len(self._waiting)

    def load(self, new: Sequence[RecordRule]) -> list[Rule]:
        """Replace the rules; those that were left. What is held back comes under the new ones."""
        left = self.left
        self._rules, self._used = deque(new), 0
        return left

    def release(self) -> None:
        """End the Hold whose turn it is. Raises ValueError when there is none."""
        if not (self._rules and self._rules[0].holds):
            raise ValueError("nothing is held")
        self._next()

    def feed(self, records: Sequence[bytes], now: float) -> None:
        """Records that came, in order."""
        self._waiting.extend((now, record) for record in records)

    def passed(self, last: bytes) -> None:
        """Records passed without us, while we were idle; `last` was the last of them."""
        self._last_sequence = VEvent.decode(last).sequence

    def decide(self, now: float) -> list[Decision]:
        """All that can be decided now, in order."""
        out: list[Decision] = []
        while True:
            decision = self._decide_one(now)
            if decision is None:
                return out
            for record in decision.sent:
                if len(record) >= 8:
                    self._last_sequence = VEvent.decode(record).sequence
            # Nothing overtakes a delayed record.
            self._last_due = max(self._last_due, decision.due)
            out.append(dataclasses.replace(decision, due=self._last_due))

    def _decide_one(self, now: float) -> Decision | None:
        rule = self._rules[0] if self._rules else _PASS
        if rule.holds or len(self._waiting) < rule.needs:
            return None
        taken = [self._waiting.popleft() for _ in range(rule.needs)]
        got = tuple(record for _, record in taken)
        # What needs no record arrives when it is its turn.
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
