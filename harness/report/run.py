"""One run's folder, out/<run-id>/: allure-results, logs, and what came of it.

`result.json` is for programs, `summary.md` for people; its first line is the verdict.
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

#: What comes of a test. A known defect showed itself as expected; one that is fixed did not.
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
KNOWN, FIXED = "known defect", "known defect fixed"
#: Its host was given up: it neither passed nor failed.
NOT_RUN = "not run"


@dataclass(frozen=True)
class Result:
    """One test. Of its `seconds` the first `setup` went by before it began: guests were booted, or
    restored. Of a failed one `blame` says who has to act (harness.report.blame.Blame). `again` is
    the command line that repeats one that did not pass."""

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
    """A run that is being written down."""

    folder: Path
    lab: str = "none"
    environment: dict[str, str] = field(default_factory=dict)
    tests: list[Result] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    @classmethod
    def create(cls, parent: Path) -> Run:
        """A folder of its own under `parent`, named by the time."""
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
        """A run may work on one host after the other, or on several at a time."""
        self.lab = lab
        for key, value in environment.items():
            seen = self.environment.get(key, value).split("; ")
            seen += [one for one in value.split("; ") if one not in seen]
            self.environment[key] = "; ".join(seen)

    def record(self, result: Result) -> None:
        """What came of a test. One that passed but failed in tear-down comes twice: the failure
        counts."""
        self.tests = [test for test in self.tests if test.id != result.id]
        self.tests.append(result)

    def count(self, outcome: str) -> int:
        return sum(test.outcome == outcome for test in self.tests)

    @property
    def blamed(self) -> list[Blame]:
        """Whom the failures point to, one each. A known defect that is gone is the product's."""
        return [Blame(test.blame) for test in self.tests if test.blame]

    def write(self) -> None:
        """Write result.json, summary.md, and what Allure is told of the run as a whole."""
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
    """A run's result.json; `run` is its folder or the file. Raises HarnessError."""
    file = run / "result.json" if run.is_dir() else run
    try:
        body = json.loads(file.read_text())
        if not isinstance(body["tests"], list) or not isinstance(body["environment"], dict):
            raise TypeError("no run's result")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise HarnessError(
            f"{file} is no run's result: {problem}",
            fix="name the folder of a run that has ended: out/<run-id>",
        ) from None
    return dict(body)


def _property(name: str, value: str) -> str:
    """A line of a Java properties file, where a name ends at its first space."""
    name, value = (text.replace("\\", "\\\\") for text in (name, value))
    return f"{name.replace(' ', chr(92) + ' ')}={value}\n"
