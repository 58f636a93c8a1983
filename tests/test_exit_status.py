"""The exit status of a run says whom its failures point to, with workers and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = ("lab", "guests", "soak", "defects", "reporting")
SUITE = """
import pytest
from harness.errors import HarnessError, LabError

def test_passes():
    pass

def test_product():
    assert [1] == [2], "a wrong record"

@pytest.fixture
def provisioned():
    raise LabError("no such device", fix="plug it in")

def test_lab(provisioned):
    pass

def test_harness():
    {}["missing"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    suites = tmp_path / "suites"
    suites.mkdir()
    (suites / "test_kinds.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


@pytest.mark.parametrize(
    ("workers", "chosen", "status", "verdict"),
    [
        (0, "passes", 0, "**PASSED**: 1 passed"),
        (0, "product or lab", 1, "**FAILED (1 product, 1 lab)**"),
        (2, "product or lab", 1, "**FAILED (1 product, 1 lab)**"),
        (0, "harness or lab", 10, "**FAILED (1 lab, 1 harness)**"),
        (0, "lab", 11, "**FAILED (1 lab)**"),
        (0, "nothing", 5, "**FAILED (nothing ran)**"),
    ],
)
def test_status(folder: Path, workers: int, chosen: str, status: int, verdict: str) -> None:
    plugins = [f"-pfixtures.{name}" for name in PLUGINS]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "suites", "-k", chosen, f"-n{workers}", *plugins],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    (run,) = (folder / "out").iterdir()
    assert (run / "summary.md").read_text().startswith(verdict)
    tests = json.loads((run / "result.json").read_text())["tests"]
    assert [f"1 {test['blame']}" in verdict for test in tests if test["outcome"] != "passed"] == [
        True
    ] * len(chosen.split(" or ") if status not in (0, 5) else [])
    cases = ElementTree.parse(run / "junit.xml").getroot().findall(".//testcase")
    assert len(cases) == len(tests)
