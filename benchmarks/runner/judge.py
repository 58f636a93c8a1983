"""Compare figures with earlier ones: which have regressed, and which exceed their limits. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.runner.figure import Better, Figure

#: A figure that is so many times as bad as before has regressed.
TOLERATED = 1.15


def worsening(figure: Figure, now: float, before: float) -> float:
    """Return how many times as bad as before a figure is: 1 if it is the same, less if it is
    better."""
    bad, good = (now, before) if figure.better is Better.SMALLER else (before, now)
    if bad == good:
        return 1.0
    return bad / good if good > 0 else math.inf


@dataclass(frozen=True)
class Judgement:
    """What is said of a figure: its median now, None if it was not measured, and the one that it is
    compared with, None if there is none."""

    figure: Figure
    now: float | None
    before: float | None = None

    @property
    def ratio(self) -> float | None:
        """Return the value as a multiple of the earlier one; None if that says nothing."""
        if self.now is None or not self.before or not self.figure.compared:
            return None
        return self.now / self.before

    @property
    def regressed(self) -> bool:
        if self.now is None or self.before is None or not self.figure.compared:
            return False
        return worsening(self.figure, self.now, self.before) > TOLERATED

    @property
    def exceeds(self) -> bool:
        return self.now is not None and self.figure.exceeds(self.now)
