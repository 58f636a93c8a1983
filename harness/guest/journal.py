"""Keep a journal of a guest: the commands that it was given, when its event queues grew, and notes
for the test's report.

Times are of this machine's clock, in seconds since 1970. Before they are shown beside a host's
times, the difference of the two clocks must be taken off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CommandRun:
    """A shell command that ran in the guest from `start` to `end`; `what` is its purpose."""

    start: float
    end: float
    command: str
    what: str


@dataclass(frozen=True)
class Growth:
    """A change of PROD of an SMMU's event queue, from `old` to `new`.

    It happened after `before`, when PROD was last read with its old value, and not after `seen`.
    """

    smmu: int
    before: float
    seen: float
    old: int
    new: int


@dataclass
class Journal:
    """The commands of one guest, the growth of its queues and what else a report should say of it,
    since it was attached to."""

    started: float = field(default_factory=time.time)
    commands: list[CommandRun] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _last: dict[int, tuple[float, int]] = field(default_factory=dict)

    @contextmanager
    def running(self, command: str, what: str) -> Iterator[None]:
        """Note the time that the body takes as the time of a command, whether or not it raises."""
        start = time.time()
        try:
            yield
        finally:
            self.commands.append(CommandRun(start, time.time(), command, what))

    def note(self, what: str) -> None:
        """Note what the reader of a test's report should know of the guest."""
        self.notes.append(what)

    def read(self, smmu: int, prod: int) -> None:
        """Note that PROD of an SMMU's queue was read just now with the value `prod`."""
        now = time.time()
        before, old = self._last.get(smmu, (now, prod))
        if old != prod:
            self.growths.append(Growth(smmu, before, now, old, prod))
        self._last[smmu] = now, prod

    @property
    def smmus(self) -> list[int]:
        """Return the numbers of the SMMUs whose queues grew, in order."""
        return sorted({growth.smmu for growth in self.growths})
