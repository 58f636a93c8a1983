"""What a person sees during long work: what is done, how far it is, how long it takes.

On a terminal a live bar; elsewhere (a CI log) a line when a long step starts, one now and then,
and one when it ends. Short steps say nothing there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

#: Elsewhere than on a terminal, steps that are expected to be shorter are not told.
LONG_SECONDS = 15.0

Advance = Callable[[float], None]


class Progress:
    """A reporter of steps. One per process; steps may nest."""

    def __init__(
        self, console: Console | None = None, *, enabled: bool = True, newline_first: bool = False
    ) -> None:
        """`newline_first`: others leave the cursor in the middle of a line, as pytest's row of dots
        does."""
        self.console = console or Console(stderr=True, highlight=False)
        self.enabled = enabled
        self._before = "\n" if newline_first else ""
        self._bar: Bar | None = None

    @contextmanager
    def step(self, what: str, expected_seconds: float | None = None) -> Iterator[Advance]:
        """Show `what` while the body runs. The body may report how far it is (0 to 1);
        until it does, the bar fills by `expected_seconds`."""
        if not self.enabled:
            yield lambda fraction: None
            return
        shown = self._on_bar if self.console.is_terminal else self._as_lines
        with shown(what, expected_seconds) as report:
            yield report

    @contextmanager
    def _on_bar(self, what: str, expected: float | None) -> Iterator[Advance]:
        outermost = self._bar is None
        if outermost:
            self._bar = Bar(
                TextColumn("{task.description}"),
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
    def _as_lines(self, what: str, expected: float | None) -> Iterator[Advance]:
        if not expected or expected < LONG_SECONDS:
            yield lambda fraction: None
            return
        started = time.monotonic()
        self._say(f"{what} (about {expected:.0f} s) …")
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
        self.console.print(f"{self._before}{line}")
