"""A program that is started with open files has them, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.host import open_files

PROGRAM = Path(open_files.__file__)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a program as the lab host does."""
    start = [sys.executable, "-I", str(PROGRAM)]
    return subprocess.run([*start, *argv], capture_output=True, text=True, check=False)


def test_the_program_reads_and_writes_the_files(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("text of one")
    other.touch()
    done = run("sh", "-c", 'cat <&"$1"; printf written >&"$2"', "sh", f"{{{one}}}", f"{{{other}}}")
    assert (done.stdout, done.stderr, done.returncode) == ("text of one", "", 0)
    assert other.read_text() == "written"


def test_a_path_is_a_part_of_an_argument_and_all_else_stays(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = run("echo", f"iommufd,id=x,fd={{{file}}}", "{qmp}", "a b", "{}")
    before, number = done.stdout.split()[0].rsplit("=", 1)
    assert before == "iommufd,id=x,fd"
    assert int(number) > 2
    assert done.stdout.rstrip("\n").endswith(" {qmp} a b {}")


def test_a_folder_stands_for_the_devices_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, devices = tmp_path / "vfio-dev", tmp_path / "devices"
    (folder / "vfio7").mkdir(parents=True)
    devices.mkdir()
    (devices / "vfio7").write_text("seven")
    monkeypatch.setattr(open_files, "VFIO_DEVICES", str(devices))
    number = int(open_files.with_descriptors(f"{{{folder}}}"))
    with os.fdopen(number) as opened:
        assert opened.read() == "seven"


def test_a_file_that_is_not_there_is_named() -> None:
    done = run("true", "{/no/such/file}")
    assert done.returncode != 0
    assert "No such file or directory: '/no/such/file'" in done.stderr
