"""One run's folder, out/<run-id>/: allure-results, logs, and what came of it.

`result.json` is for programs, `summary.md` for people; its first line is the verdict.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """One test. `outcome` is passed, failed or skipped; `seconds` covers set-up and tear-down."""

    id: str
    outcome: str
    seconds: float
    covers: tuple[str, ...]
    message: str = ""


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

    def count(self, outcome: str) -> int:
        return sum(test.outcome == outcome for test in self.tests)

    def write(self) -> None:
        """Write result.json, summary.md and Allure's environment."""
        body = {
            "lab": self.lab,
            "environment": self.environment,
            "started": self.started,
            "seconds": round(time.time() - self.started, 1),
            "tests": [asdict(test) for test in self.tests],
        }
        (self.folder / "result.json").write_text(json.dumps(body, indent=1) + "\n")
        (self.folder / "summary.md").write_text(self._summary(body["seconds"]))
        properties = "".join(f"{name}={value}\n" for name, value in self.environment.items())
        (self.allure_results / "environment.properties").write_text(properties)

    def _summary(self, seconds: object) -> str:
        failed, passed, skipped = map(self.count, ("failed", "passed", "skipped"))
        verdict = "FAILED" if failed or not self.tests else "PASSED"
        lines = [
            f"**{verdict}**: {passed} passed, {failed} failed, {skipped} skipped in {seconds} s "
            f"on lab {self.lab}",
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
        return "\n".join(lines) + "\n"
