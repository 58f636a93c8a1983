"""Runs of suites in a folder of their own, with all our fixtures, as people start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import conftest

ROOT = Path(__file__).parents[1]
PLUGINS = [f"-p{name}" for name in conftest.pytest_plugins]


def run_suite(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest on `folder`/suites, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "suites", *PLUGINS, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
