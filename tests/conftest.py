"""These fixtures are shared by the harness's own tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parent.parent / "harness/guest/payload/guest-tool.c"


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the guest's program `hil` for this machine, and return its path."""
    binary = tmp_path_factory.mktemp("bin") / "hil"
    subprocess.run(["gcc", "-Wall", "-Werror", "-O2", "-o", str(binary), str(_SOURCE)], check=True)
    return binary
