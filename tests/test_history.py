"""A test that changes its outcome on the same software is flaky, and shown with its rate; one that
was repaired, or that the lab failed, is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import HarnessError
from harness.report import behaviours_page, history
from harness.report.run import FAILED, FIXED, KNOWN, NOT_RUN, PASSED, SKIPPED
from tests.suite_run import run_suite, write_suite

LAB_FAILED = "failed by the lab"


def result(outcome: str, revision: str = "a", qemu: str = "11.1", lab: str = "virtual") -> Any:
    """Return the result.json of a run with one test."""
    test = {"id": "suites/t.py::test", "outcome": outcome, "seconds": 1.5, "covers": []}
    if outcome in (FAILED, FIXED):
        test |= {"blame": "product", "message": "def test():\nE   AssertionError: lost\n"}
    if outcome == LAB_FAILED:
        test |= {"outcome": FAILED, "blame": "lab"}
    stack = {"host kernel": "7.2", "guest kernel": "7.2", "QEMU": qemu}
    return {
        "environment": {"lab": lab, "revision": revision},
        "stacks": {"vgrace": stack},
        "tests": [{**test, "host": "vgrace"}],
    }


def rates(results: list[Any]) -> list[str]:
    named = [(f"run-{number}", one) for number, one in enumerate(results)]
    return [one.rate for one in history.flaky(history.pasts(named))]


@pytest.mark.parametrize(
    ("outcomes", "rate"),
    [
        ((PASSED, PASSED), []),
        ((FAILED, FAILED), []),
        ((PASSED, FAILED), ["failed in 1 of 2 runs, 50%"]),
        ((PASSED, FIXED, KNOWN, SKIPPED), ["failed in 1 of 3 runs, 33%"]),
        ((PASSED, SKIPPED, NOT_RUN, PASSED, LAB_FAILED), []),
    ],
)
def test_at_one_revision_any_change_counts(outcomes: tuple[str, ...], rate: list[str]) -> None:
    assert rates([result(outcome) for outcome in outcomes]) == rate


@pytest.mark.parametrize(
    ("outcomes", "rate"),
    [
        ((FAILED, FAILED, PASSED, PASSED), []),
        ((PASSED, FAILED), []),
        ((PASSED, FAILED, PASSED, PASSED), ["failed in 1 of 4 runs, 25%"]),
        ((PASSED, LAB_FAILED, PASSED), []),
    ],
)
@pytest.mark.parametrize("revisions", [("a", "b", "c", "d"), ("a-dirty",) * 4, ("unknown",) * 4])
def test_when_the_test_may_have_changed_it_must_change_back(
    outcomes: tuple[str, ...], revisions: tuple[str, ...], rate: list[str]
) -> None:
    told = zip(outcomes, revisions, strict=False)
    assert rates([result(outcome, revision) for outcome, revision in told]) == rate


def test_a_test_takes_the_median_of_its_last_runs() -> None:
    took = [1.0, 100.0, 4.0, 3.0, 90.0, 2.0]
    results = [result(PASSED) for _ in took]
    for one, seconds in zip(results, took, strict=True):
        one["tests"][0]["seconds"] = seconds
    results.append(result(NOT_RUN))
    found = history.durations(history.pasts((str(n), one) for n, one in enumerate(results)))
    assert found == {"suites/t.py::test": 4.0}
    assert history.durations([]) == {}


def test_on_other_software_or_hardware_a_test_may_say_something_else() -> None:
    other = [result(PASSED), result(FAILED, qemu="11.2"), result(FAILED, lab="grace")]
    assert rates([*other, *other]) == []


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return a folder of four runs, of which one is damaged."""
    for number, outcome in enumerate((PASSED, FAILED, PASSED), start=1):
        (tmp_path / f"run-{number}").mkdir()
        (tmp_path / f"run-{number}/result.json").write_text(json.dumps(result(outcome)))
    (tmp_path / "run-0").mkdir()
    (tmp_path / "run-0/result.json").write_text("")
    return tmp_path


def called(*arguments: str) -> list[str]:
    ended = CliRunner().invoke(app, ["history", *arguments], catch_exceptions=False)
    assert ended.exit_code == 0
    return [" ".join(line.split()) for line in ended.stdout.splitlines()]


def test_the_command_shows_each_run(out: Path) -> None:
    stack = "host kernel 7.2, guest kernel 7.2, QEMU 11.1, lab virtual"
    flaky = ["suites/t.py::test is flaky: failed in 1 of 3 runs, 33%", f"on {stack}"]
    assert called("t.py::te", f"--out={out}") == [
        "suites/t.py::test",
        "run on host outcome seconds why",
        "run-1 1 vgrace passed 1.5",
        "run-2 1 vgrace failed (product) 1.5 AssertionError: lost",
        "run-3 1 vgrace passed 1.5",
        f"1: {stack}",
        *flaky,
    ]
    assert called(f"--out={out}") == flaky
    assert called(f"--out={out}", "--last=1") == [f"no test of the latest 1 runs in {out} is flaky"]
    assert [one["outcome"] for one in json.loads(called("test", f"--out={out}", "--json")[0])] == [
        PASSED,
        FAILED,
        PASSED,
    ]
    with pytest.raises(HarnessError, match="has test_no in its id"):
        CliRunner().invoke(app, ["history", "test_no", f"--out={out}"], catch_exceptions=False)


def test_a_stack_that_is_not_told_is_null_for_programs(tmp_path: Path) -> None:
    """As of a test that needs no host, in a run that had hosts with different software."""
    told = result(PASSED)
    told["stacks"]["other"] = {"QEMU": "11.2"}
    told["tests"][0]["host"] = ""
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1/result.json").write_text(json.dumps(told))
    (one,) = json.loads(called("test", f"--out={tmp_path}", "--json")[0])
    assert one["stack"] is None


#: There is no host, but software on one.
SUITE = """
import os
from types import SimpleNamespace

import pytest

from harness.fixtures.run import RUN

@pytest.fixture
def host():
    return SimpleNamespace(name="one", digests={}, capabilities=())

@pytest.fixture
def _ran_on(request):
    run = request.config.stash[RUN]
    run.ran_on("lab", {"lab": "lab"})
    run.stacks["one"] = {"QEMU": "11.1"}

def test_flips(_ran_on): assert os.environ["FAILS"] == ""

def test_stays(_ran_on): pass
"""


def test_a_run_tells_its_flaky_tests(tmp_path: Path) -> None:
    write_suite(tmp_path, SUITE)
    for fails in ("", "yes", ""):
        ended = run_suite(tmp_path, FAILS=fails)
    assert "flaky: 1 of these tests; `hil history` shows them" in ended.stdout
    (*earlier, last) = sorted((tmp_path / "out").iterdir())
    summary = (last / "summary.md").read_text()
    rate = "failed in 1 of 3 runs, 33%"
    assert (
        f"\nFlaky tests, on this software:\n\n- `suites/test_suite.py::test_flips`: {rate}\n"
        in (summary)
    )
    assert "Flaky" not in "".join((run / "summary.md").read_text() for run in earlier)
    told = json.loads((last / "result.json").read_text())
    assert told["flaky"] == {"suites/test_suite.py::test_flips": rate}
    assert f'test_flips: <span class="known">{rate}</span>' in behaviours_page.html("t", told)
