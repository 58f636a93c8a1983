"""Measure what a developer waits for: the virtual host, and the first line of a test."""

from __future__ import annotations

import sys
import tempfile
import time
import uuid
from pathlib import Path

from benchmarks.runner.call import call, hil, seconds_of
from benchmarks.runner.figure import Benchmark, Figure, Samples
from benchmarks.runner.host import LAB, PLAIN, own_machine
from benchmarks.runner.program import alone
from harness.errors import LabError
from tests.suite_run import run_suite, write_suite

UP = Figure("lab-up", "`hil lab up`: everything is built, the host is down", "s")
NEW = Figure(
    "first-line",
    "from the start of pytest to the first line of a test with a kind of guest that is new to the "
    "host, which is up",
    "s",
    limit=10,
)
AGAIN = Figure("first-line-again", "the same for the same test again", "s", limit=2.5)
_AGAIN_TIMES = 3

#: Its guest is another kind for each KIND: guests are told apart by their command lines. The
#: monotonic clock is the same in all processes of a machine (CLOCK_MONOTONIC).
SUITE = """
import os
import time
from pathlib import Path

import pytest

from harness.guest.description import GuestSpec, SmmuSpec
from harness.host.ability import FLOODER

KIND = GuestSpec(smmus=(SmmuSpec(devices=(FLOODER,)),), append=f"kind={os.environ['KIND']}")


@pytest.mark.covers("VEQ-01")
@pytest.mark.guest(KIND)
def test_first_line(guest):
    Path(os.environ["FIRST_LINE"]).write_text(str(time.monotonic()))
    guest.run("true")
"""


def measure(share: float) -> Samples:
    """Yield the seconds of each wait, in the order in which a developer has them."""
    up = hil("lab", "up", f"--lab={LAB}", f"--host={PLAIN}")
    with tempfile.TemporaryDirectory() as scratch, own_machine() as (_, machine):
        call(up)  # reads the files that a boot needs
        machine.down()
        yield UP, seconds_of(lambda: call(up))
        folder, kind = write_suite(Path(scratch), SUITE), uuid.uuid4().hex
        yield NEW, first_line(folder, kind)
        for _ in range(_AGAIN_TIMES):
            yield AGAIN, first_line(folder, kind)


def first_line(folder: Path, kind: str) -> float:
    """Run the suite in a folder; return the seconds until the first line of its test. Raises
    LabError when the test does not pass."""
    noted = folder / "first-line"
    started = time.monotonic()
    done = run_suite(folder, f"--lab={LAB}", f"--host={PLAIN}", KIND=kind, FIRST_LINE=str(noted))
    if done.returncode != 0:
        raise LabError(f"the test did not pass:\n{done.stdout}{done.stderr}")
    return float(noted.read_text()) - started


BENCHMARK = Benchmark((UP, NEW, AGAIN), measure, seconds=45, lab=True)

if __name__ == "__main__":
    sys.exit(alone(__file__))
