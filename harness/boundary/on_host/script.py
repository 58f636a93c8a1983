"""What becomes of the records of one queue under its rules. Pure: no I/O, no clock of its own.

Also part of the boundary's supervisor on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from harness.boundary.on_host import rules
from harness.boundary.on_host.rules import Rule
from harness.smmu.vevents import U32_MAX, VEvent, lost_events, successor


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
        self._rules: deque[Rule] = deque()
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
        left = list(self._rules)
        if left and self._used:
            fields = left[0].to_json()
            left[0] = rules.from_json({**fields, "count": fields["count"] - self._used})
        return left

    @property
    def waiting(self) -> int:
        """Records that came and are not decided."""
        return len(self._waiting)

    def load(self, new: Sequence[Rule]) -> list[Rule]:
        """Replace the rules; those that were left. What is held back comes under the new ones."""
        left = self.left
        self._rules, self._used = deque(new), 0
        return left

    def release(self) -> None:
        """End the Hold whose turn it is. Raises ValueError when there is none."""
        if not (self._rules and isinstance(self._rules[0], rules.Hold)):
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
        rule = self._rules[0] if self._rules else None
        if isinstance(rule, rules.Hold):
            return None
        if isinstance(rule, rules.LostHeader):
            self._next()
            number = successor(self._last_sequence) if rule.sequence is None else rule.sequence
            return Decision(rule.name, (), (lost_events(number).encode(),), now, now)
        if isinstance(rule, rules.Inject):
            self._next()
            return Decision(rule.name, (), (rule.record,), now, now)
        needed = len(rule.order) if isinstance(rule, rules.Reorder) else 1
        if len(self._waiting) < needed:
            return None
        taken = [self._waiting.popleft() for _ in range(needed)]
        arrived, got = taken[-1][0], tuple(record for _, record in taken)
        if rule is None:
            return Decision(rules.Pass.name, got, got, arrived, arrived)
        sent, wait = self._apply(rule, got), 0.0
        if isinstance(rule, rules.Delay):
            wait = rule.seconds
        self._used += 1
        if self._used >= getattr(rule, "count", 1):
            self._next()
        return Decision(rule.name, got, sent, arrived, arrived + wait)

    def _apply(self, rule: Rule, got: tuple[bytes, ...]) -> tuple[bytes, ...]:
        if isinstance(rule, rules.Drop):
            return ()
        if isinstance(rule, rules.Duplicate):
            return got * (1 + rule.copies)
        if isinstance(rule, rules.Reorder):
            return tuple(got[index] for index in rule.order)
        if isinstance(rule, rules.Short):
            return (got[0][: rule.size],)
        if isinstance(rule, rules.Renumber):
            event = VEvent.decode(got[0])
            if rule.to is None:
                assert rule.by is not None
                number = successor(event.sequence + rule.by - 1)
            elif self._used == 0:
                number = rule.to
            else:
                number = successor(rule.to + self._used - 1)
            return (dataclasses.replace(event, sequence=number).encode(),)
        return got

    def _next(self) -> None:
        self._rules.popleft()
        self._used = 0
