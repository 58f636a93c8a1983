"""The folder of one run, out/<run-id>/: allure-results, logs, result.json and summary.md.

`result.json` is for programs. `summary.md` is for people; its first line is the verdict.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness.errors import HarnessError
from harness.report import executor
from harness.report.blame import Blame
from harness.report.markup import block, cell, code, printable
from harness.report.notes import Notes

#: The outcomes of a test. KNOWN: a known defect failed it, as expected; FIXED: the defect did not.
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
KNOWN, FIXED = "known defect", "known defect fixed"
#: The test's host was given up: the test neither passed nor failed.
NOT_RUN = "not run"

#: The longest reason that `brief` returns, in characters: it is to be a line.
_REASON = 160


@dataclass(frozen=True)
class Result:
    """The result of one test. `seconds` includes the `setup` seconds, in which guests were booted
    or restored. `message` is what a test said that did not pass: of one that was skipped, why.
    `blame` says who has to act on a failed test (harness.report.blame.Blame). `again` is the
    command line that repeats a test that has a `message` and was not skipped. `notes` say what
    could not be had for its report. `host` is the name of the host that the test ran on, or was to
    run on; empty for one that needs no host."""

    id: str
    outcome: str
    seconds: float
    covers: tuple[str, ...]
    message: str = ""
    blame: str = ""
    again: str = ""
    setup: float = 0.0
    notes: tuple[str, ...] = ()
    host: str = ""


@dataclass
class Run:
    """A run whose results are being recorded. `started` is in seconds since 1970. `notes` say what
    could not be had for the run as a whole; `broken` is why it ended early, empty if it did not.

    `stacks` has the software under test of each host that was open, by its name, and `given` what
    is known of the lab and the software that the run was given, even if no host could run it: see
    harness.report.tested_stack.
    """

    folder: Path
    lab: str = "none"
    environment: dict[str, str] = field(default_factory=dict)
    stacks: dict[str, dict[str, str]] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    tests: list[Result] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    notes: Notes = field(default_factory=Notes)
    broken: str = ""
    flaky: dict[str, str] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    @classmethod
    def create(cls, parent: Path) -> Run:
        """Make a new folder under `parent`, named after the time in UTC, and return its run. Raises
        OSError when it cannot be made; then nothing of it is left."""
        # UTC: the order of names is the order of time, also where an hour comes twice.
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        for attempt in range(100):
            folder = parent / (stamp if not attempt else f"{stamp}-{attempt}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            try:
                (folder / "allure-results").mkdir()
                (folder / "logs").mkdir()
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            return cls(folder)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(parent / stamp))

    @property
    def allure_results(self) -> Path:
        return self.folder / "allure-results"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def ran_on(self, lab: str, environment: dict[str, str]) -> None:
        """Record what tests ran on. Call it for each host: values that differ are joined with
        semicolons, because a run may use one host after the other or several at a time."""
        self.lab = lab
        for key, value in environment.items():
            seen = self.environment.get(key, value).split("; ")
            seen += [one for one in value.split("; ") if one not in seen]
            self.environment[key] = "; ".join(seen)

    def record(self, result: Result) -> None:
        """Record the result of a test. The last one counts: a test that passed and then fails in
        tear-down has two."""
        self.tests = [test for test in self.tests if test.id != result.id]
        self.tests.append(result)

    def count(self, outcome: str) -> int:
        return sum(test.outcome == outcome for test in self.tests)

    @property
    def blamed(self) -> list[Blame]:
        """Return the blame of each failure. A known defect that is fixed counts as a failure."""
        return [Blame(test.blame) for test in self.tests if test.blame]

    @property
    def seconds(self) -> float:
        """Return how long the run has taken by now, whatever its clock was set to meanwhile."""
        return round(time.monotonic() - self._began, 1)

    @property
    def told_nothing(self) -> bool:
        """Return whether the run has nothing to show: no test ran, and none was to."""
        return not (self.tests or self.notes.lines or self.broken)

    def write(self) -> None:
        """Write Allure's files about the run as a whole, summary.md and result.json. Raises OSError
        when one of the last two cannot be written."""
        properties = "".join(_property(*one) for one in self.environment.items())
        told = json.dumps(executor.describe(self.folder.name), indent=1)
        for name, text in (("environment.properties", properties), ("executor.json", told)):
            with self.notes.guard(f"{name} of Allure's results"):
                _replace(self.allure_results / name, text)
        self.write_results(self.folder)

    def write_results(self, folder: Path) -> None:
        """Write summary.md and result.json into a folder, each whole or not at all. Raises
        OSError."""
        body = self.body()
        _replace(folder / "result.json", json.dumps(body, indent=1) + "\n")
        _replace(folder / "summary.md", self.summary(body["seconds"]))

    def body(self) -> dict[str, Any]:
        """Return the content of result.json."""
        return {
            "lab": self.lab,
            "environment": self.environment,
            "stacks": self.stacks,
            "given": self.given,
            "started": self.started,
            "seconds": self.seconds,
            "notes": self.notes.lines,
            "broken": self.broken,
            "flaky": self.flaky,
            "tests": [asdict(test) for test in self.tests],
        }

    def summary(self, seconds: object) -> str:
        """Return summary.md of a run that took so many seconds."""
        kinds = [f"{self.blamed.count(kind)} {kind}" for kind in Blame if kind in self.blamed]
        if self.broken:
            kinds.append(self.broken)
        elif not self.tests:
            kinds.append("nothing ran")
        verdict = f"FAILED ({', '.join(kinds)})" if kinds else "PASSED"
        counts = [f"{self.count(outcome)} {outcome}" for outcome in (PASSED, FAILED, SKIPPED)]
        counts += [f"{self.count(one)} {one}" for one in (KNOWN, FIXED, NOT_RUN) if self.count(one)]
        lines = [
            f"**{verdict}**: {', '.join(counts)} in {seconds} s on lab {self.lab}",
            "",
            *(f"- {name}: {code(value)}" for name, value in self.environment.items()),
            *self._missing(),
            *self._unsteady(),
            "",
            "| test | behaviours | outcome | seconds |",
            "|---|---|---|---:|",
            *(
                f"| {cell(test.id)} | {', '.join(test.covers)} | {test.outcome} "
                f"| {test.seconds:.1f} |"
                for test in self.tests
            ),
        ]
        for test in self.tests:
            if test.message and test.outcome != SKIPPED:
                lines += ["", f"### {code(test.id)}", "", *block(test.message)]
                lines += ["", "To repeat:", "", *block(test.again)]
        return printable("\n".join(lines)) + "\n"

    def _unsteady(self) -> list[str]:
        """Return the lines that list the flaky tests, if there are any."""
        told = [f"- {code(test)}: {rate}" for test, rate in self.flaky.items()]
        return ["", "Flaky tests, on this software:", "", *told] if told else []

    def _missing(self) -> list[str]:
        """Return the lines that tell what could not be had, if there is anything."""
        missing = [f"- {code(note)}" for note in self.notes.lines]
        missing += [
            f"- {code(test.id)}: {code(note)}" for test in self.tests for note in test.notes
        ]
        return ["", "What could not be had:", "", *missing] if missing else []


@dataclass(frozen=True)
class _Body:
    """What a result.json must have for those who read it. Runs of older versions of the project do
    not have all of it."""

    environment: dict[str, str]
    tests: list[Result]
    lab: str = ""
    stacks: dict[str, dict[str, str]] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)
    started: float = 0.0
    broken: str = ""
    flaky: dict[str, str] = field(default_factory=dict)


_BODY = TypeAdapter(_Body)


def load(run: Path) -> dict[str, Any]:
    """Return a run's result.json; `run` is its folder or the file. Raises HarnessError when that is
    not the result of a run."""
    file = run / "result.json" if run.is_dir() else run
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        _BODY.validate_python(body)
    except (OSError, ValueError, RecursionError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else str(problem)
        if isinstance(problem, ValidationError):
            first = problem.errors()[0]
            place = ".".join(map(str, first["loc"]))
            why = f"{place}: {first['msg']}" if place else first["msg"]
        elif file.exists() and not file.stat().st_size:
            why = "it is empty"
        raise HarnessError(
            f"{file} is no run's result: {why}",
            fix="name the folder of a run that has ended, out/<run-id>, or remove a damaged one",
        ) from None
    return dict(body)


def brief(message: str) -> str:
    """Return the line of a test's message that says why it did not pass: of pytest's report of a
    failure, the one that has the error."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    first = printable((errors or lines or [""])[0])
    return first if len(first) <= _REASON else f"{first[: _REASON - 1]}…"


def _replace(file: Path, text: str) -> None:
    """Write a file so that its readers see all of it or what was there before."""
    new = file.with_name(f"{file.name}.new")
    try:
        new.write_text(text, encoding="utf-8", errors="backslashreplace")
        new.replace(file)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _property(name: str, value: str) -> str:
    """Return a line of a Java properties file, in which an unescaped space, = or : would end the
    name."""
    name, value = (" ".join(text.replace("\\", "\\\\").split()) for text in (name, value))
    return re.sub(r"([ :=#!])", r"\\\1", name) + f"={value}\n"
