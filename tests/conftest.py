"""These fixtures are shared by the harness's own tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

_SOURCE = Path(__file__).parent.parent / "harness/guest/payload/guest-tool.c"


@pytest.fixture(scope="session")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the guest's program `hil` for this machine, and return its path."""
    binary = tmp_path_factory.mktemp("bin") / "hil"
    subprocess.run(["gcc", "-Wall", "-Werror", "-O2", "-o", str(binary), str(_SOURCE)], check=True)
    return binary
