"""What several of the harness's own tests need."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parent.parent / "harness/guest/payload/guest-tool.c"


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's program, compiled for this machine."""
    binary = tmp_path_factory.mktemp("bin") / "hil"
    subprocess.run(["gcc", "-Wall", "-Werror", "-O2", "-o", str(binary), str(_SOURCE)], check=True)
    return binary
