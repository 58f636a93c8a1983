"""Show a person what is being done during long work, how far it is, and how long it takes.

On a terminal it is a live bar. Elsewhere, such as in a CI log, it is a line when a long step
starts, another at most every 30 seconds while the step reports how far it is, and one when it ends;
short steps are not shown there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

#: Steps that are expected to take less time than this are shown on a terminal only.
LONG_SECONDS = 15.0

Advance = Callable[[float], None]


def roughly(seconds: float) -> str:
    """Return a duration for people who wait: `about 40 s`, `about 7 minutes`."""
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} minutes"


class StandardError(Console):
    """A console on standard error. Whoever has closed that does not want to read it, and the work
    goes on: rich would end the program, in the middle of what it does for a host."""

    def __init__(self, **options: Any) -> None:
        super().__init__(stderr=True, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress:
    """A reporter of steps, which may nest. Use one for each process."""

    def __init__(
        self, console: Console | None = None, *, enabled: bool = True, newline_first: bool = False
    ) -> None:
        """Report on `console` (default: standard error) if `enabled`. Set `newline_first` where
        other output leaves the cursor in mid-line, as pytest-xdist's progress dots do."""
        self.console = console or StandardError()
        self.enabled = enabled
        self._before = "\n" if newline_first else ""
        self._bar: Bar | None = None

    @contextmanager
    def step(self, what: str, expected_seconds: float | None = None) -> Iterator[Advance]:
        """Show `what` while the body runs. Yield a call with which the body may report how far it
        is (0 to 1); until it does, the bar fills within `expected_seconds`."""
        if not self.enabled:
            yield lambda fraction: None
            return
        shown = self._on_bar if self.console.is_terminal else self._as_lines
        with shown(what, expected_seconds) as report:
            yield report

    @contextmanager
    def waiting(self, what: str, at_most: float) -> Iterator[Advance]:
        """Show `what` while the body waits for somebody else, at most so many seconds; it is shown
        at once. Yield the same as `step`."""
        if not self.enabled:
            yield lambda fraction: None
            return
        limit = f"at most {at_most:.0f} s"
        shown = self._on_bar if self.console.is_terminal else self._as_lines
        with shown(what, at_most, limit) as report:
            yield report

    def note(self, what: str) -> None:
        """Show a sentence that a person should read."""
        if self.enabled:
            self._say(what)

    @contextmanager
    def _on_bar(
        self, what: str, expected: float | None, limit: str | None = None
    ) -> Iterator[Advance]:
        outermost = self._bar is None
        if outermost:
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.start()
        assert self._bar is not None
        bar, task = self._bar, self._bar.add_task(what, total=1.0)
        done = threading.Event()
        known = threading.Event()

        def advance() -> None:
            started = time.monotonic()
            while expected and not done.wait(0.2) and not known.is_set():
                elapsed = time.monotonic() - started
                bar.update(task, completed=min(0.99, elapsed / expected))

        def report(fraction: float) -> None:
            known.set()
            bar.update(task, completed=fraction)

        ticker = threading.Thread(target=advance, daemon=True)
        ticker.start()
        try:
            yield report
        finally:
            done.set()
            ticker.join()
            self._finish(bar, task, outermost)

    def _finish(self, bar: Bar, task: TaskID, outermost: bool) -> None:
        bar.remove_task(task)
        if outermost:
            bar.stop()
            self._bar = None

    @contextmanager
    def _as_lines(
        self, what: str, expected: float | None, limit: str | None = None
    ) -> Iterator[Advance]:
        if not limit and (not expected or expected < LONG_SECONDS):
            yield lambda fraction: None
            return
        started = time.monotonic()
        self._say(f"{what} ({limit or f'about {expected:.0f} s'}) …")
        last = [started]

        def report(fraction: float) -> None:
            now = time.monotonic()
            if now - last[0] >= 30:
                last[0] = now
                self._say(f"{what}: {fraction:.0%} after {now - started:.0f} s")

        try:
            yield report
        except BaseException:
            self._say(f"{what}: stopped after {time.monotonic() - started:.1f} s")
            raise
        self._say(f"{what}: done in {time.monotonic() - started:.1f} s")

    def _say(self, line: str) -> None:
        # An address such as [::1] is no markup, and a command must not be broken into lines.
        # And a log whose disk is full must not stop the work.
        with contextlib.suppress(OSError):
            self.console.print(f"{self._before}{line}", markup=False, soft_wrap=True)
