"""Work that goes on in turns: the agent has one thread, which waits for nothing."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

#: Work that goes on each time that it is asked to, and never waits.
Work = Generator[None, None, Any]


class Job:
    """Work, and what came of it: `answer` is None until it is done."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.answer: dict[str, Any] | None = None

    def advance(self) -> None:
        try:
            next(self.work)
        except StopIteration as done:
            self.answer = done.value or {}
        except Exception as problem:  # no work may end the agent
            traceback.print_exc()
            self.answer = {"error": repr(problem)}


class Jobs:
    """What is to be done, one job after the other."""

    def __init__(self) -> None:
        self._left: deque[Job] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._left)

    def add(self, work: Work) -> Job:
        self._left.append(Job(work))
        return self._left[-1]

    def advance(self) -> None:
        """Go on with the oldest job, and begin the next if it is done."""
        while self._left:
            self._left[0].advance()
            if self._left[0].answer is None:
                return
            self._left.popleft()


def until(condition: Callable[[], bool], seconds: float) -> Work:
    """Go on when the condition holds, or after so many seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        yield
