"""What tests said in one run after the other; which of them change their outcome although the
software under test is the same: flaky tests; and how long they take."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.report import executor, runs
from harness.report.blame import Blame
from harness.report.run import FAILED, FIXED, KNOWN, NOT_RUN, PASSED, brief, load
from harness.report.tested_stack import TestedStack, lab_of, sole_stack, stack_of

#: So many runs are looked at, unless something else is asked for.
RUNS = 60
#: So many runs tell how long a test takes: what it took in one may have been a host's boot.
DURATIONS = 5


@dataclass(frozen=True)
class Past:
    """What a test said in one run: the run's name, the harness's revision, the lab, its host and
    what was tested there; who is to blame for a failure, and a line of what it said."""

    test: str
    run: str
    revision: str
    lab: str
    host: str
    stack: TestedStack | None
    outcome: str
    blame: str
    seconds: float
    why: str

    @property
    def good(self) -> bool | None:
        """Return whether the test found the product as it expects it; None if it says nothing of
        that."""
        if self.outcome in (PASSED, KNOWN):
            return True
        if self.outcome in (FAILED, FIXED) and self.blame != Blame.LAB:
            return False
        return None


@dataclass(frozen=True)
class Flaky:
    """A test that changes its outcome on one stack in one lab. It failed in `failed` of the `ran`
    runs in which it said anything of the product."""

    test: str
    lab: str
    stack: TestedStack
    failed: int
    ran: int

    @property
    def rate(self) -> str:
        return f"failed in {self.failed} of {self.ran} runs, {self.failed / self.ran:.0%}"


def read(out: Path, most: int = RUNS) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and the result.json of the latest runs in a folder, the earliest first. Runs
    that are damaged, or of other programs, are left out."""
    found = []
    for folder in runs.ended(out)[-most:]:
        with contextlib.suppress(HarnessError):
            found.append((folder.name, load(folder)))
    return found


def pasts(results: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Past]:
    """Yield what each test said in these runs, in their order."""
    for run, result in results:
        lab, sole = lab_of(result), sole_stack(result)
        revision = str(result["environment"].get("revision", ""))
        for test in result["tests"]:
            yield Past(
                test["id"],
                run,
                revision,
                lab,
                test.get("host", ""),
                stack_of(result, test, sole),
                test["outcome"],
                test.get("blame", ""),
                test["seconds"],
                brief(test.get("message", "")),
            )


def durations(history: Iterable[Past]) -> dict[str, float]:
    """Return how many seconds each test takes: the median of what it took when it was run last."""
    took: dict[str, list[float]] = {}
    for past in history:
        if past.outcome != NOT_RUN:
            took.setdefault(past.test, []).append(past.seconds)
    return {test: statistics.median(seconds[-DURATIONS:]) for test, seconds in took.items()}


def flaky(history: Iterable[Past]) -> list[Flaky]:
    """Return the flaky tests of a history: on the same stack of the same lab they change their
    outcome at one revision of the harness, or change it back at another. A change that stays may be
    due to the test itself, if it was changed as well."""
    series: dict[tuple[str, str, TestedStack], list[Past]] = {}
    for past in history:
        if past.stack and past.good is not None:
            series.setdefault((past.test, past.lab, past.stack), []).append(past)
    return [
        Flaky(*key, failed=sum(not past.good for past in told), ran=len(told))
        for key, told in sorted(series.items(), key=lambda one: one[0][:2])
        if _changes(told)
    ]


def _changes(told: Sequence[Past]) -> bool:
    """Return whether the outcomes of a test on one stack are those of a flaky one."""
    turns = sum(before.good != after.good for before, after in itertools.pairwise(told))
    at_revision: dict[str, set[bool | None]] = {}
    for past in told:
        # Otherwise the test may have been changed.
        if executor.tells_tests(past.revision):
            at_revision.setdefault(past.revision, set()).add(past.good)
    return turns > 1 or any(len(seen) > 1 for seen in at_revision.values())


def of_run(out: Path, name: str, result: Mapping[str, Any]) -> list[Flaky]:
    """Return those flaky tests that a run has run: on its stacks, in its lab. `result` is its
    result.json, which need not be written yet; the earlier runs are those in `out`."""
    earlier = [one for one in read(out) if one[0] < name]
    mine = {(past.test, past.lab, past.stack) for past in pasts([(name, result)])}
    found = flaky(pasts([*earlier, (name, result)]))
    return [one for one in found if (one.test, one.lab, one.stack) in mine]
