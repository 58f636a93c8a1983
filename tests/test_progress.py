"""What a person sees of a test's long steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pexpect

TEST = """
def test_something(progress):
    with progress.step("boot the moon", 60):
        pass
    print("what a test prints")
"""


def test_a_test_s_steps_are_seen_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["fixtures.lab"]\n')
    (tmp_path / "test_it.py").write_text(TEST)
    said = pexpect.run(
        f"{sys.executable} -m pytest -q -p no:cacheprovider",
        cwd=str(tmp_path),
        env={"TERM": "xterm", "PATH": "/usr/bin:/bin"},
        timeout=60,
        encoding="utf-8",
    )
    assert "1 passed" in said
    assert "boot the moon" in said
    assert "what a test prints" not in said
