"""What we had a guest do, and when we saw its event queues grow. Times are this machine's clock,
in seconds since 1970: whoever draws them beside a host's must know how the two differ."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CommandRun:
    """A shell command that the guest was given from `start` to `end`, and what it is for."""

    start: float
    end: float
    command: str
    what: str


@dataclass(frozen=True)
class Growth:
    """PROD of an SMMU's queue read differently than before: it changed after `before` (the last
    time that it had the old value) and no later than `seen`."""

    smmu: int
    before: float
    seen: float
    old: int
    new: int


@dataclass
class Journal:
    """Of one guest, since somebody attached to it."""

    started: float = field(default_factory=time.time)
    commands: list[CommandRun] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)
    _last: dict[int, tuple[float, int]] = field(default_factory=dict)

    @contextmanager
    def running(self, command: str, what: str) -> Iterator[None]:
        """The body has the guest do it, whether or not that works out."""
        start = time.time()
        try:
            yield
        finally:
            self.commands.append(CommandRun(start, time.time(), command, what))

    def read(self, smmu: int, prod: int) -> None:
        """PROD of an SMMU's queue was read just now."""
        now = time.time()
        before, old = self._last.get(smmu, (now, prod))
        if old != prod:
            self.growths.append(Growth(smmu, before, now, old, prod))
        self._last[smmu] = now, prod

    @property
    def smmus(self) -> list[int]:
        """Those whose queues grew."""
        return sorted({growth.smmu for growth in self.growths})
