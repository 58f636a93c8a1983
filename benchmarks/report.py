"""Measure how long the report of a run takes. Needs no lab."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.runner.call import call, hil, seconds_of
from benchmarks.runner.figure import Benchmark, Figure, Samples
from benchmarks.runner.host import SILENT
from benchmarks.runner.program import alone
from harness.artifacts.store import Store
from harness.errors import HarnessError
from harness.report import site
from tests.suite_run import run_suite, write_suite

REPORT = Figure("report", "`hil report` of a run of 200 tests, of which 20 failed", "s", limit=5)
TESTS = 200

SUITE = f"""
import pytest


@pytest.mark.covers("VEQ-01")
@pytest.mark.parametrize("number", range({TESTS}))
def test_one(number):
    print("said by", number)
    assert number % 10, "every tenth fails"
"""


def measure(share: float) -> Samples:
    """Yield the seconds of a report."""
    Store().get(site.allure(), SILENT)
    with tempfile.TemporaryDirectory() as scratch:
        run = ran(Path(scratch))
        yield REPORT, seconds_of(lambda: call(hil("report", str(run))))


def ran(folder: Path) -> Path:
    """Run the suite in a folder; return the folder of the run. Raises HarnessError when it has not
    that many results."""
    done = run_suite(write_suite(folder, SUITE))
    runs = [*(folder / "out").glob("*/result.json")]
    results = [*(folder / "out").glob("*/allure-results/*-result.json")]
    if len(runs) != 1 or len(results) != TESTS:
        raise HarnessError(f"{len(results)} results:\n{done.stdout[-2000:]}{done.stderr}")
    return runs[0].parent


BENCHMARK = Benchmark((REPORT,), measure, seconds=15)

if __name__ == "__main__":
    sys.exit(alone(__file__))
