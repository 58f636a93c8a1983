"""How long a soak may last."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TESTS = """
import time

def test_soak(soak): time.sleep(1.5)

def test_stuck(): time.sleep(1.5)
"""


def test_a_soak_may_last_its_minutes_beyond_the_limit_of_a_test(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["fixtures.soak"]\n')
    (tmp_path / "test_long.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 1\n")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--soak-minutes=0.05"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    outcomes = dict(re.findall(r"test_long\.py::(\w+) (\w+)", ended.stdout))
    assert outcomes == {"test_soak": "PASSED", "test_stuck": "FAILED"}
    assert "Timeout (>1.0s)" in ended.stdout
