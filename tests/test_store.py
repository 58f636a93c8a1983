"""The artifact cache is atomic and locked, resumes builds, and is clean after a build fails, is
killed or is interrupted."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from harness.artifacts.store import Recipe, Store, content_key
from harness.errors import LabError
from harness.progress import Progress
from harness.waiting import wait_for
from tests.processes import interruptible

QUIET = Progress(enabled=False)
Build = Callable[[Path, Path], dict[str, object]]


def recipe(build: Build, key: str = "k", needs: int = 0) -> Recipe:
    return Recipe("thing", key, build, needs_bytes=needs, expected_seconds=1)


def good(out: Path, work: Path) -> dict[str, object]:
    (out / "file").write_text("content")
    return {"version": "1"}


def entries(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if not path.name.endswith(".lock")} - {
        "unfinished"
    }


def test_built_once(tmp_path: Path) -> None:
    calls = []

    def build(out: Path, work: Path) -> dict[str, object]:
        calls.append(1)
        return good(out, work)

    store, made = Store(tmp_path), recipe(build)
    assert store.get(made, QUIET) == store.get(made, QUIET) == tmp_path / "thing-k"
    assert (len(calls), store.manifest(made)) == (1, {"version": "1"})
    assert entries(tmp_path) == {"thing-k"}


def test_another_key_is_another_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get(recipe(good, "a"), QUIET) != store.get(recipe(good, "b"), QUIET)
    assert content_key("ab", "c") != content_key("a", "bc")


def test_a_failed_build_leaves_work_but_no_entry(tmp_path: Path) -> None:
    def half(out: Path, work: Path) -> dict[str, object]:
        (out / "file").write_text("half")
        (work / "progress").write_text("so far")
        raise LabError("no")

    store = Store(tmp_path)
    with pytest.raises(LabError, match="no"):
        store.get(recipe(half), QUIET)
    assert entries(tmp_path) == set()

    def rest(out: Path, work: Path) -> dict[str, object]:
        assert (work / "progress").read_text() == "so far"
        return good(out, work)

    store.get(recipe(rest), QUIET)
    assert not (tmp_path / "unfinished/thing-k").exists()


@pytest.mark.parametrize("leftover", ["thing-k.tmp-abc", "thing-k"])
def test_what_a_killed_build_left_is_replaced(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).mkdir()
    (tmp_path / leftover / "file").write_text("half")
    store = Store(tmp_path)
    assert not store.has(recipe(good))
    assert (store.get(recipe(good), QUIET) / "file").read_text() == "content"
    assert entries(tmp_path) == {"thing-k"}


def test_too_small_a_disk_is_told_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"needs \d+ MiB .* only \d+ MiB are free"):
        Store(tmp_path).get(recipe(good, needs=1 << 60), QUIET)


def test_a_disk_that_fills_up_is_told(tmp_path: Path) -> None:
    def full(out: Path, work: Path) -> dict[str, object]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LabError, match=r"disk full while building thing(.|\n)*HIL_CACHE"):
        Store(tmp_path).get(recipe(full), QUIET)
    assert entries(tmp_path) == set()


BUILDER = """
import subprocess, sys
from pathlib import Path
from harness.progress import Progress
from harness.artifacts import kernel
from harness.artifacts.store import Recipe, Store

def build(out, work):
    (Path(sys.argv[1]) / "started").touch()
    kernel.run(["sh", "-c", "echo $$ >pid; exec sleep " + sys.argv[2]], work)
    return {}

Store(Path(sys.argv[1])).get(Recipe("thing", "k", build, 0, 1), Progress(enabled=False))
"""


def builder(root: Path, seconds: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return interruptible([sys.executable, "-c", BUILDER, str(root), seconds])


def test_a_second_build_waits_for_the_first(tmp_path: Path) -> None:
    with builder(tmp_path, "1") as first:
        wait_for("the first to start", (tmp_path / "started").exists, deadline=20)
        started = time.monotonic()
        Store(tmp_path).get(recipe(good), QUIET)
        assert time.monotonic() - started > 0.5
        assert first.wait() == 0
    assert not (tmp_path / "thing-k/file").exists(), "the first one's result was used"


def test_ctrl_c_ends_the_tools_and_leaves_no_entry(tmp_path: Path) -> None:
    with builder(tmp_path, "600") as process:
        pid = tmp_path / "unfinished/thing-k/pid"
        wait_for("the tool to run", lambda: pid.exists() and pid.read_text(), deadline=20)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
    tool = int(pid.read_text())
    wait_for("the tool to end", lambda: not Path(f"/proc/{tool}").exists(), deadline=5)
    assert entries(tmp_path) == {"started"}
    assert Store(tmp_path).get(recipe(good), QUIET), "the lock is free"
