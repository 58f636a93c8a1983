"""Run the suites on a mutant until a test fails, and say what that means."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.artifacts import leashed
from harness.errors import LabError
from harness.report import runs
from harness.report.blame import Blame
from harness.report.requirements import Requirement
from harness.report.run import NOT_RUN, SKIPPED, brief, load
from tests.mutants.catalogue import Mutant
from tests.mutants.workshop import ORIGINAL, Subject

#: The most seconds that one run of pytest may take. Its tests have limits of their own.
LONGEST = 3600.0
#: What pytest prints of a run that goes on: [ 12%].
_PERCENT = re.compile(rb"\[ *([0-9]+)%\]")
_LOG = "pytest.log"
#: pytest's exit status if no test is chosen.
_NO_TEST = 5
#: The rest of the suites is tried without what takes longest.
_REST = ("-m", "not long", "--soak-minutes=1")


class Outcome(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    WRONGLY_BLAMED = "wrongly blamed"
    SURVIVED = "survived"
    UNREACHABLE = "not reachable"
    BROKEN = "broken"

    @property
    def good(self) -> bool:
        """Return whether the suites have done what they can."""
        return self in (Outcome.KILLED, Outcome.UNREACHABLE)


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: the test that failed first, the seconds from the start of the run
    to its end, without those that it took to make the mutant, whom the failure blames, why, and
    the folder of the run."""

    outcome: Outcome
    test: str = ""
    seconds: float = 0.0
    blame: str = ""
    why: str = ""
    run: str = ""


def named(mutant: Mutant, tests: Sequence[Requirement]) -> list[str]:
    """Return the tests of the behaviours that must notice a mutant, in the order of those."""
    return list(
        dict.fromkeys(one.test for id in mutant.behaviours for one in tests if id in one.covers)
    )


def judged(body: dict[str, Any], seconds: float, run: Path) -> Verdict | None:
    """Return what the results of a run say of a mutant; None if no test failed."""
    for test in body["tests"]:
        if test.get("blame"):
            right = test["blame"] == Blame.PRODUCT
            outcome = Outcome.KILLED if right else Outcome.WRONGLY_BLAMED
            why = brief(test.get("message", ""))
            return Verdict(outcome, test["id"], seconds, test["blame"], why, str(run))
    if body.get("broken"):
        return Verdict(Outcome.BROKEN, seconds=seconds, why=body["broken"], run=str(run))
    return None


def tried(
    mutant: Mutant,
    tests: Sequence[Requirement],
    subject: Subject,
    folder: Path,
    advance: Callable[[float], None],
    *,
    rest: bool,
) -> Verdict:
    """Run the tests of a mutant's behaviours, those that take long after the others, then the rest
    of the suites if `rest`, until one fails. `advance` is told how far each run is."""
    started, first, ran = time.monotonic(), named(mutant, tests), 0
    calls = [[*first, "-m", "not long"], [*first, "-m", "long"]]
    if rest:
        named_before = dict.fromkeys(test.partition("[")[0] for test in first)
        calls.append(["suites", *_REST, *(f"--deselect={test}" for test in named_before)])
    run = ""
    for arguments in calls:
        try:
            ended = _run(arguments, subject, folder, advance)
        except LabError as problem:
            return Verdict(Outcome.BROKEN, why=problem.message, run=str(folder))
        if ended is None:
            continue
        path, body = ended
        run = str(path)
        verdict = judged(body, time.monotonic() - started, path)
        if verdict:
            return verdict
        ran += sum(one["outcome"] not in (SKIPPED, NOT_RUN) for one in body["tests"])
    seconds = time.monotonic() - started
    if not ran:
        return Verdict(Outcome.BROKEN, seconds=seconds, why="no test could run", run=run)
    passed = "all suites passed" if rest else "the tests of its behaviours passed"
    return Verdict(Outcome.SURVIVED, seconds=seconds, why=passed, run=run)


def controlled(
    tests: Iterable[str], options: tuple[str, ...], folder: Path, advance: Callable[[float], None]
) -> dict[str, str]:
    """Run tests on the stack as it is; return those that fail there too, and why. The options name
    the lab. Raises LabError if they cannot run."""
    wanted = sorted(set(tests))
    if not wanted:
        return {}
    subject = replace(ORIGINAL, options=options)
    ended = _run(wanted, subject, folder, advance, first_only=False)
    results: list[dict[str, Any]] = ended[1]["tests"] if ended else []
    return {one["id"]: brief(one["message"]) for one in results if one.get("blame")}


def _run(
    arguments: Sequence[str],
    subject: Subject,
    folder: Path,
    advance: Callable[[float], None],
    *,
    first_only: bool = True,
) -> tuple[Path, dict[str, Any]] | None:
    """Run pytest, and return the folder of its run and its results; None if no test is chosen.
    Raises LabError if it leaves no results, or takes too long."""
    folder.mkdir(parents=True, exist_ok=True)
    log, before = folder / _LOG, runs.ended(folder)
    log.unlink(missing_ok=True)
    ends = time.monotonic() + LONGEST
    stop = ["--maxfail=1"] if first_only else []
    options = [*stop, *subject.options, f"--out={folder}"]

    def look() -> None:
        if time.monotonic() > ends:
            raise LabError(f"pytest did not end within {LONGEST:.0f} s", fix=f"read {log}")
        found = _PERCENT.findall(log.read_bytes())
        advance(int(found[-1]) / 100 if found else 0.0)

    status = leashed.run(
        [sys.executable, "-m", "pytest", *arguments, *options],
        log,
        folder=subject.checkout,
        environment=subject.environment,
        look=look,
    )
    if status == _NO_TEST:
        return None
    for run in runs.ended(folder):
        if run not in before:
            return run, load(run)
    raise LabError(f"pytest left no results, status {status}", fix=f"read {log}")
