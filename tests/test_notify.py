"""The end of a run is told to a command, and what becomes of that changes nothing of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.suite_run import run_suite, write_suite

SUITE = """
def test_passes(): pass
def test_fails(): assert 1 == 2
"""


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_a_command_gets_the_verdict(tmp_path: Path, workers: tuple[str, ...]) -> None:
    write_suite(tmp_path, SUITE)
    command = "--notify=head -n 1 >>told; echo $HIL_RUN >>told; echo printed"
    ended = run_suite(tmp_path, command, *workers)
    assert ended.returncode == 1
    (run,) = (tmp_path / "out").iterdir()
    verdict, folder = (tmp_path / "told").read_text().splitlines()
    assert verdict.startswith("**FAILED (1 product)**: 1 passed, 1 failed")
    assert folder == str(run)
    assert (run / "notify.log").read_text() == "printed\n"


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    write_suite(tmp_path, "def test_passes(): pass\n")
    ended = run_suite(tmp_path, "--notify=echo no such mail >&2; exit 3")
    assert ended.returncode == 0
    (run,) = (tmp_path / "out").iterdir()
    said = f"--notify failed: status 3; {run / 'notify.log'} has what it printed\n"
    assert ended.stderr.endswith(said)
    assert (run / "notify.log").read_text() == "no such mail\n"


def test_nobody_is_told_of_a_run_of_nothing(tmp_path: Path) -> None:
    write_suite(tmp_path, SUITE)
    run_suite(tmp_path, "--notify=touch told", "-knothing")
    assert not (tmp_path / "told").exists()
