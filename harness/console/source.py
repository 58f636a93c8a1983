"""What every kind of console is for its recording."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class ConsoleLostError(Exception):
    """What carries the console has ended, or cannot be opened; trying again may help. Its text says
    why."""


class ConsoleStream(Protocol):
    """An open console."""

    def read(self) -> bytes:
        """Return something of what has come since; nothing if nothing has. It does not wait. Raises
        ConsoleLostError."""


class ConsoleSource(Protocol):
    """Where a host's console is. It is only read: nothing is ever typed there."""

    @property
    def lag(self) -> float:
        """Return how long after it was printed something may come here, in seconds."""

    def open(self) -> AbstractContextManager[ConsoleStream]:
        """Yield the open console. Raises ConsoleLostError, or LabError for what a person must put
        right."""
