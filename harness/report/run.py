"""The folder of one run, out/<run-id>/: allure-results, logs, result.json and summary.md.

`result.json` is for programs. `summary.md` is for people; its first line is the verdict.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.report import executor
from harness.report.blame import Blame

#: The outcomes of a test. KNOWN: a known defect failed it, as expected; FIXED: the defect did not.
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
KNOWN, FIXED = "known defect", "known defect fixed"
#: The test's host was given up: the test neither passed nor failed.
NOT_RUN = "not run"


@dataclass(frozen=True)
class Result:
    """The result of one test. `seconds` includes the `setup` seconds, in which guests were booted
    or restored. `blame` says who has to act on a failed test (harness.report.blame.Blame). `again`
    is the command line that repeats a test that has a `message`."""

    id: str
    outcome: str
    seconds: float
    covers: tuple[str, ...]
    message: str = ""
    blame: str = ""
    again: str = ""
    setup: float = 0.0


@dataclass
class Run:
    """A run whose results are being recorded. `started` is in seconds since 1970."""

    folder: Path
    lab: str = "none"
    environment: dict[str, str] = field(default_factory=dict)
    tests: list[Result] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    @classmethod
    def create(cls, parent: Path) -> Run:
        """Make a new folder under `parent`, named after the time, and return its run. Raises
        FileExistsError when the name is taken a hundred times."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for attempt in range(100):
            folder = parent / (stamp if not attempt else f"{stamp}-{attempt}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            (folder / "allure-results").mkdir()
            (folder / "logs").mkdir()
            return cls(folder)
        raise FileExistsError(parent / stamp)

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

    def write(self) -> None:
        """Write result.json, summary.md, and Allure's files about the run as a whole."""
        body = {
            "lab": self.lab,
            "environment": self.environment,
            "started": self.started,
            "seconds": round(time.time() - self.started, 1),
            "tests": [asdict(test) for test in self.tests],
        }
        (self.folder / "result.json").write_text(json.dumps(body, indent=1) + "\n")
        (self.folder / "summary.md").write_text(self._summary(body["seconds"]))
        properties = "".join(_property(*one) for one in self.environment.items())
        (self.allure_results / "environment.properties").write_text(properties)
        told = executor.describe(self.folder.name)
        (self.allure_results / "executor.json").write_text(json.dumps(told, indent=1))

    def _summary(self, seconds: object) -> str:
        kinds = [f"{self.blamed.count(kind)} {kind}" for kind in Blame if kind in self.blamed]
        verdict = f"FAILED ({', '.join(kinds)})" if kinds else "PASSED"
        if not self.tests:
            verdict = "FAILED (nothing ran)"
        counts = [f"{self.count(outcome)} {outcome}" for outcome in (PASSED, FAILED, SKIPPED)]
        counts += [f"{self.count(one)} {one}" for one in (KNOWN, FIXED, NOT_RUN) if self.count(one)]
        lines = [
            f"**{verdict}**: {', '.join(counts)} in {seconds} s on lab {self.lab}",
            "",
            *(f"- {name}: {value}" for name, value in self.environment.items()),
            "",
            "| test | behaviours | outcome | seconds |",
            "|---|---|---|---:|",
            *(
                f"| {test.id} | {', '.join(test.covers)} | {test.outcome} | {test.seconds:.1f} |"
                for test in self.tests
            ),
        ]
        failures = [test for test in self.tests if test.message]
        for test in failures:
            lines += ["", f"### {test.id}", "", "```", test.message, "```"]
            lines += ["", "To repeat:", "", "```", test.again, "```"]
        return "\n".join(lines) + "\n"


def load(run: Path) -> dict[str, Any]:
    """Return a run's result.json; `run` is its folder or the file. Raises HarnessError when that is
    not the result of a run."""
    file = run / "result.json" if run.is_dir() else run
    try:
        body = json.loads(file.read_text())
        if not isinstance(body["tests"], list) or not isinstance(body["environment"], dict):
            raise TypeError("`tests` is not a list, or `environment` is not an object")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        raise HarnessError(
            f"{file} is no run's result: {problem}",
            fix="name the folder of a run that has ended: out/<run-id>",
        ) from None
    return dict(body)


def _property(name: str, value: str) -> str:
    """Return a line of a Java properties file, in which an unescaped space would end the name."""
    name, value = (text.replace("\\", "\\\\") for text in (name, value))
    return f"{name.replace(' ', chr(92) + ' ')}={value}\n"
