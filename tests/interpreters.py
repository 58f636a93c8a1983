"""Programs for lab hosts are tested with this Python and with the oldest that they may meet."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def _python39() -> str | None:
    """Return the path of a working Python 3.9 from PATH or from pyenv, or None."""
    in_path = shutil.which("python3.9")
    of_pyenv = Path.home().glob(".pyenv/versions/3.9.*/bin/python3.9")
    for candidate in [*([in_path] if in_path else []), *map(str, of_pyenv)]:
        # pyenv puts a python3.9 into PATH that fails unless that version is selected.
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


PYTHON39 = _python39()
#: Parameters for a fixture: this Python, and the oldest Python that a lab host may have.
INTERPRETERS = [
    pytest.param(sys.executable, id="this-python"),
    pytest.param(
        PYTHON39,
        id="python3.9",
        marks=pytest.mark.skipif(PYTHON39 is None, reason="this machine has no python3.9"),
    ),
]
