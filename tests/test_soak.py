"""A soak may last as long as it is told to."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import time

def test_soak(soak): time.sleep(1.5)

def test_stuck(): time.sleep(1.5)
"""


@pytest.mark.parametrize(("options", "soak"), [((), "PASSED"), (("--timeout=1",), "FAILED")])
def test_a_soak_may_last_its_minutes_beyond_the_limit_of_a_test(
    tmp_path: Path, options: tuple[str, ...], soak: str
) -> None:
    """The usual time limit of a test does not end a soak. A limit on the command line does."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["harness.fixtures.soak"]\n')
    (tmp_path / "test_long.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 1\n")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-vpno:cacheprovider", "--soak-minutes=0.05", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    outcomes = dict(re.findall(r"test_long\.py::(\w+) (\w+)", ended.stdout))
    assert outcomes == {"test_soak": soak, "test_stuck": "FAILED"}
    assert "Timeout (>1.0s)" in ended.stdout
