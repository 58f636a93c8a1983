"""Run the tests on what was built, and judge the commit by their results."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.artifacts import leashed
from harness.bisect.question import Judgement
from harness.errors import HarnessError
from harness.report.blame import EXIT_STATUS, Blame
from harness.report.run import FAILED, FIXED, KNOWN, NOT_RUN, PASSED, load

#: The command that runs tests.
PYTEST = (sys.executable, "-m", "pytest")
#: What pytest itself says with its exit status (docs/nightly.md), of a run without results.
_STATUS = {
    2: "the run was interrupted, or the test could not be collected",
    3: "pytest itself failed",
    5: "no test was chosen",
    EXIT_STATUS[Blame.HARNESS]: "the harness failed",
    EXIT_STATUS[Blame.LAB]: "the lab failed",
}
_WRONG_CALL = 4
#: The longest reason, in characters: it is to be a line.
_REASON = 160


@dataclass(frozen=True)
class Trial:
    """What one run of the tests said, and its folder. `lab` says whether the lab failed, so that
    another run may say more."""

    judgement: Judgement
    reason: str = ""
    lab: bool = False
    run: Path | None = None


def check(arguments: Sequence[str], folder: Path, log: Path, command: Sequence[str]) -> None:
    """Have pytest collect the tests, which takes seconds, before hours of building. Raises
    HarnessError if the call is wrong, or chooses no test."""
    log.unlink(missing_ok=True)
    status = leashed.run([*command, *arguments, "--collect-only", "-q"], log, folder=folder)
    if status != 0:
        raise _wrong_call(status, log)


def run(
    arguments: Sequence[str],
    folder: Path,
    out: Path,
    log: Path,
    symptom: re.Pattern[str] | None,
    command: Sequence[str],
) -> Trial:
    """Call pytest in a folder with these arguments, and judge its run, whose folder it makes in
    `out`. Raises HarnessError for a wrong call, which is wrong for all commits."""
    before = set(out.glob("*/"))
    status = leashed.run([*command, *arguments, f"--out={out}"], log, folder=folder)
    if status == _WRONG_CALL:
        raise _wrong_call(status, log)
    made = sorted(one for one in set(out.glob("*/")) - before if (one / "result.json").is_file())
    if not made:
        reason = _STATUS.get(status, f"pytest ended with status {status} and left no results")
        return Trial(Judgement.UNKNOWN, reason, lab=status == EXIT_STATUS[Blame.LAB])
    judgement, reason, lab = judge(load(made[-1]), symptom)
    return Trial(judgement, " ".join(reason.split())[:_REASON], lab, made[-1])


def judge(results: dict[str, Any], symptom: re.Pattern[str] | None) -> tuple[Judgement, str, bool]:
    """Return what a run's results say, why, and whether the lab failed. A known defect that failed
    a test as it is expected to makes a commit bad, and one that is fixed makes it good."""
    tests = results["tests"]
    failing = [one for one in tests if _fails(one)]
    for one in failing:
        if symptom is None or symptom.search(one["message"]):
            return Judgement.BAD, _said(one), False
    if failing:
        reason = f"failed, but not with the symptom: {_said(failing[0])}"
        return Judgement.UNKNOWN, reason, False
    for one in tests:
        if one["outcome"] == NOT_RUN or one["blame"] == Blame.LAB:
            return Judgement.UNKNOWN, f"the lab failed: {_said(one)}", True
    for one in tests:
        if one["outcome"] not in (PASSED, FIXED):
            whose = "the harness failed: " if one["outcome"] == FAILED else f"{one['outcome']}: "
            return Judgement.UNKNOWN, f"{whose}{_said(one)}", False
    if results.get("broken") or not tests:
        return Judgement.UNKNOWN, results.get("broken") or "nothing ran", False
    return Judgement.GOOD, "", False


def _fails(test: dict[str, Any]) -> bool:
    return (test["outcome"], test["blame"]) in ((FAILED, Blame.PRODUCT), (KNOWN, ""))


def _said(test: dict[str, Any]) -> str:
    """Return a line about a test: of pytest's report of a failure that which has the error."""
    lines = [line.strip() for line in test["message"].splitlines() if line.strip()]
    errors = [line[1:].strip() for line in lines if re.match(r"E\s", line)]
    return str((errors or lines or [test["id"]])[0])


def _wrong_call(status: int, log: Path) -> HarnessError:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    why = (told or lines or [f"status {status}"])[-1]
    return HarnessError(
        f"pytest cannot run these tests: {why}",
        fix=f"call pytest with these arguments until it runs; {log} has all that it says",
    )
