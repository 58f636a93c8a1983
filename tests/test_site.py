"""What Allure is told of a run. That its pages open is tested in a browser: tests/lab."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.progress import Progress
from harness.report.run import Result, Run
from harness.report.site import configuration, generate
from harness.virtual.store import Store


def test_runs_share_a_history_and_tell_their_versions(tmp_path: Path) -> None:
    runs = [Run.create(tmp_path) for _ in range(2)]
    for run in runs:
        run.ran_on("virtual", {"QEMU": "11.1.3"})
        run.record(Result("t", "passed", 1.0, ()))
        run.write()
    told = [configuration(run.folder, run.folder / "report") for run in runs]
    assert told[0]["historyPath"] == told[1]["historyPath"] == str(tmp_path / ".history.jsonl")
    assert told[0]["output"] != told[1]["output"]


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="has no Allure results"):
        generate(tmp_path, Store(tmp_path), Progress(enabled=False))
