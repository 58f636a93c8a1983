"""Relative paths are those of the folder in which pytest was called, also where another one is the
current folder or its command is repeated."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from harness.fixtures.evidence import folder_name
from harness.lab.software import Software
from tests.suite_run import results, run_suite, write_suite

SUITE = """
def test_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 1 == 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a suite, and a folder below it from which pytest is called."""
    below = write_suite(tmp_path, SUITE) / "below"
    below.mkdir()
    (below / "qemu").write_text("#!/bin/sh\n")
    return tmp_path


def test_a_run_stays_in_its_folder(folder: Path) -> None:
    ended = run_suite(folder, "--out=of-runs")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    (run,) = (folder / "of-runs").iterdir()
    ((test, result),) = results(run).items()
    assert result["notes"] == []
    assert (run / "logs" / folder_name(test)).is_dir()
    assert f"results: {run}\n" in ended.stdout


def test_a_run_of_nothing_writes_no_junit_xml(folder: Path) -> None:
    ended = run_suite(folder, "--out=of-runs", "-knothing")
    assert ended.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, ended.stdout + ended.stderr
    assert "junit.xml" not in ended.stdout


def test_what_repeats_a_test_is_called_in_the_checkout(folder: Path) -> None:
    given = ("--qemu=qemu", "--guest-kernel=host:Image", "--out=of-runs")
    ended = run_suite(folder / "below", *given, chosen="../suites")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    (run,) = (folder / "below/of-runs").iterdir()
    ((test, result),) = results(run).items()
    words = shlex.split(result["again"], comments=True)
    assert test in words
    assert {word for word in words if word.startswith("--")} == {
        f"--qemu={folder}/below/qemu",
        "--guest-kernel=host:Image",
    }


def test_files_under_test_stay_where_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a host is opened while a test has another current folder."""
    below = folder / "below"
    (below / "Image").write_bytes(bytes(56) + b"ARM\x64" + bytes(4))
    (below / "initrd").touch()
    monkeypatch.chdir(below)
    given = Software.named("qemu", "Image", Path("Image"), Path("initrd"), Path("initrd"))
    monkeypatch.chdir(folder)
    assert len(given.files) == 5
    assert all(file.is_relative_to(below) for file in given.files)
    assert Software.named("host:qemu", "host:Image") == Software("host:qemu", "host:Image")
