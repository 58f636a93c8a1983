"""A person at a terminal sees the long steps of a test, and each on a line of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from harness.checkout import ROOT

TEST = """
def test_something(progress):
    with progress.step("boot the moon", 60):
        pass
    print("what a test prints")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a test that has a long step."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["harness.fixtures.lab"]\n')
    (tmp_path / "test_it.py").write_text(TEST)
    return tmp_path


def on_a_terminal(folder: Path, *options: str) -> str:
    said = pexpect.run(
        " ".join((sys.executable, "-m pytest -q -p no:cacheprovider", *options)),
        cwd=str(folder),
        env={"TERM": "xterm", "PATH": "/usr/bin:/bin"},
        timeout=60,
        encoding="utf-8",
    )
    # For the type checker: pexpect.run returns a tuple only if it is asked for the exit status.
    assert isinstance(said, str)
    return said


def test_a_test_s_steps_are_seen_on_a_terminal(folder: Path) -> None:
    said = on_a_terminal(folder)
    assert "1 passed" in said
    assert "boot the moon" in said
    assert "what a test prints" not in said


def test_a_worker_s_steps_are_lines_of_their_own(folder: Path) -> None:
    """A worker's step begins a new line, because xdist's dots may stand on the current one."""
    said = on_a_terminal(folder, "--numprocesses=1")
    assert "1 passed" in said
    assert "\r\nboot the moon (about 60 s) …\r\n" in said
    assert "\n\r\nboot the moon: done" in said


WORK = """
import sys
from harness.progress import Progress
progress = Progress()
progress.note("begins")
with progress.step("a long step", 60):
    progress.note("goes on")
print("done")
"""


@pytest.mark.parametrize("full", [True, False])
def test_work_goes_on_although_nobody_reads_of_it(full: bool) -> None:
    """A host is given back although whoever watched the run has gone, or the log's disk is full."""
    with contextlib.ExitStack() as stack:
        if full:
            where = stack.enter_context(Path("/dev/full").open("wb")).fileno()
        else:
            reading, where = os.pipe()
            os.close(reading)
            stack.callback(os.close, where)
        ended = subprocess.run(
            [sys.executable, "-c", WORK],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=where,
            text=True,
            check=False,
        )
    assert ended.stdout == "done\n"
