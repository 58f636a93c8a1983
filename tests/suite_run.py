"""Tests run suites of their own here, with all fixtures of the project, as people start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.fixtures.plugin import pytest_plugins

ROOT = Path(__file__).parents[1]
#: Those of this checkout, whatever is installed.
PLUGINS = [
    "-pno:hil",
    "-pno:labgrid",
    "-pno:hypothesispytest",
    *(f"-p{name}" for name in pytest_plugins),
]


def write_suite(folder: Path, source: str) -> Path:
    """Make a suite of one file in a folder, and return the folder."""
    (folder / "suites").mkdir()
    (folder / "suites" / "test_suite.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return folder


def run_suite(
    folder: Path, *options: str, chosen: str = "suites", inside: Sequence[str] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    """Run pytest on what is `chosen` in a folder with these options, and return its result. The
    command line `inside` starts pytest; `more` is added to the environment."""
    return subprocess.run(
        [*inside, sys.executable, "-m", "pytest", chosen, *PLUGINS, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def results(run: Path) -> dict[str, dict[str, Any]]:
    """Return the results of the tests of a run's folder by pytest's id."""
    tests = json.loads((run / "result.json").read_text())["tests"]
    return {test["id"]: test for test in tests}
