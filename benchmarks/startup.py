"""Measure how long `hil` takes to say what it can do."""

from __future__ import annotations

import sys

from benchmarks.runner.call import call, hil, seconds_of
from benchmarks.runner.figure import Benchmark, Figure, Samples
from benchmarks.runner.program import alone

HELP = Figure("help", "`hil --help`, until it has ended", "s", limit=0.25)
_CALLS = 3


def measure(share: float) -> Samples:
    """Yield the seconds of some calls."""
    call(hil("--help"))  # reads the files, and compiles them
    for _ in range(_CALLS):
        yield HELP, seconds_of(lambda: call(hil("--help")))


BENCHMARK = Benchmark((HELP,), measure, seconds=3)

if __name__ == "__main__":
    sys.exit(alone(__file__))
