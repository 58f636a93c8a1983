"""Note what could not be had for a report, and go on.

A witness, an attachment or a file of a report may fail in any way. Its reader is told, and nothing
else is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import HilError


class Notes:
    """What could not be had, and why: each reason once, with all that it concerns."""

    def __init__(self) -> None:
        self._concerned: dict[str, list[str]] = {}

    def add(self, what: str, why: str) -> None:
        """Note that `what` could not be had, and why."""
        concerned = self._concerned.setdefault(why, [])
        if what not in concerned:
            concerned.append(what)

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Note that `what` could not be had if the body fails. Only what ends the program passes:
        Ctrl-C, and SystemExit."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        # pytest-timeout ends what takes too long by an exception that is no Exception.
        except BaseException as problem:
            self.add(what, reason(problem))

    @property
    def all(self) -> list[tuple[str, str]]:
        """Return each thing that could not be had, and why."""
        return [(what, why) for why, whats in self._concerned.items() for what in whats]

    @property
    def lines(self) -> tuple[str, ...]:
        """Return a line for each reason, with what it concerns."""
        return tuple(f"{', '.join(whats)}: {why}" for why, whats in self._concerned.items())


def reason(problem: BaseException) -> str:
    """Return why something failed, in one line."""
    if isinstance(problem, KeyboardInterrupt):
        return "interrupted"
    try:
        text = problem.message if isinstance(problem, HilError) else str(problem)
    except Exception:  # an exception whose own text fails
        text = ""
    text = " ".join(text.split())
    if isinstance(problem, (HilError, OSError)) and text:
        return text
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__
