"""Tests run suites of their own here, with all fixtures of the project, as people start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import conftest

ROOT = Path(__file__).parents[1]
PLUGINS = [f"-p{name}" for name in conftest.pytest_plugins]


def run_suite(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on `folder`/suites with these options, and return its result."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "suites", *PLUGINS, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
