"""`--loop` runs the tests again when what they test changes, in one process."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from harness.fixtures.loop import Files
from tests.suite_run import PLUGINS, ROOT, run_suite, write_suite

CONFTEST = """
from pathlib import Path
import pytest

LOG = Path("log")

def note(text):
    with LOG.open("a") as log:
        log.write(text + "\\n")

@pytest.fixture(scope="session")
def kept():
    note("opened")
    yield Path("qemu").read_text
    note("closed")

@pytest.fixture
def fresh(request):
    note("begin " + request.node.name)
    yield
    note("end " + request.node.name)
"""
CTRL_C = """
import os, signal
from _pytest.terminal import TerminalReporter

write_line = TerminalReporter.write_line

def write_and_interrupt(self, line, **markup):
    write_line(self, line, **markup)
    if "Ctrl-C ends" in line:
        os.kill(os.getpid(), signal.SIGINT)

TerminalReporter.write_line = write_and_interrupt
"""
SUITE = """
import pytest

@pytest.mark.parametrize("word", ["one", "two"])
def test_words(kept, fresh, word):
    assert word in kept()
"""
BOTH = [f"{what} test_words[{word}]" for word in ("one", "two") for what in ("begin", "end")]
SECONDS = 180


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    replace(tmp_path, "one two")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    return write_suite(tmp_path, SUITE)


def replace(folder: Path, text: str, name: str = "qemu") -> None:
    """Put another program in a file's place, as a linker does."""
    new = folder / "new"
    new.write_text(f"#!/bin/sh\n# {text}\n")
    new.chmod(0o755)
    new.rename(folder / name)


@pytest.fixture
def loop(folder: Path, request: pytest.FixtureRequest) -> Iterator[pexpect.spawn[str]]:
    more = getattr(request, "param", ())
    arguments = ["-m", "pytest", "suites", *PLUGINS, "--qemu=qemu", "--loop", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    child = pexpect.spawn(
        sys.executable,
        arguments,
        cwd=str(folder),
        env=environment,
        timeout=SECONDS,
        encoding="utf-8",
    )
    child.setwinsize(50, 120)
    with child:
        yield child


def test_a_change_is_tested_with_what_is_open(folder: Path, loop: pexpect.spawn[str]) -> None:
    loop.expect("2 passed in [0-9.]+ s; waiting for a change")
    replace(folder, "one")
    loop.expect("qemu changed")
    loop.expect("'two' in ")
    loop.expect("1 failed, 1 passed in [0-9.]+ s; waiting")
    replace(folder, "one two three")
    loop.expect("2 passed in [0-9.]+ s; waiting")
    loop.kill(signal.SIGINT)
    loop.expect(pexpect.EOF)
    loop.wait()
    # The last round's verdict is the run's.
    assert loop.exitstatus == 0
    assert (folder / "log").read_text().splitlines() == ["opened", *BOTH, *BOTH, *BOTH, "closed"]


@pytest.mark.parametrize("loop", [("-x",)], indirect=True)
def test_a_round_that_stops_at_a_failure_is_followed_by_another(
    folder: Path, loop: pexpect.spawn[str]
) -> None:
    loop.expect("2 passed in")
    replace(folder, "three")
    # The second test did not run.
    loop.expect("'one' in ")
    loop.expect("\n[^ ]*1 failed in [0-9.]+ s; waiting")
    replace(folder, "one two")
    loop.expect("2 passed in [0-9.]+ s; waiting")
    loop.kill(signal.SIGINT)
    loop.expect(pexpect.EOF)
    loop.wait()
    assert loop.exitstatus == 0


def test_what_cannot_be_tested_is_waited_out(folder: Path, loop: pexpect.spawn[str]) -> None:
    loop.expect("2 passed in")
    (folder / "qemu").write_text("no program")
    loop.expect("not tested: --qemu: qemu is no program; waiting for a change")
    (folder / "qemu").unlink()
    replace(folder, "two")
    loop.expect("1 failed, 1 passed in")
    loop.kill(signal.SIGINT)
    loop.expect(pexpect.EOF)
    loop.wait()
    assert loop.exitstatus == 1


def test_ctrl_c_as_soon_as_the_verdict_is_read(folder: Path) -> None:
    """Who reads it may be faster than the process that wrote it goes on."""
    with (folder / "conftest.py").open("a") as conftest:
        conftest.write(CTRL_C)
    result = run_suite(folder, "--qemu=qemu", "--loop")
    assert "2 passed in" in result.stdout
    assert result.returncode == 0, result.stdout
    assert (folder / "log").read_text().splitlines() == ["opened", *BOTH, "closed"]


def test_a_file_that_is_being_written_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(b"old")
    files = Files([path])
    pid = os.fork()
    if pid == 0:
        with path.open("wb", buffering=0) as file:
            for _ in range(10):
                file.write(b"new")
                time.sleep(0.1)
        os._exit(0)
    assert files.wait() == [path]
    size = path.stat().st_size
    os.waitpid(pid, 0)
    assert size == 30


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "none is named; name what you build by --qemu"),
        (("--qemu=host:/usr/bin/qemu",), "none is named"),
        (("--qemu=qemu", "--numprocesses=2"), "--loop runs in one process"),
    ],
)
def test_wrong_calls(folder: Path, options: tuple[str, ...], said: str) -> None:
    result = run_suite(folder, "--loop", *options)
    assert (result.returncode, said in result.stderr) == (4, True), result.stderr
    assert not (folder / "out").exists()
