"""What nobody uses any more is removed from the cache and from the runs, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
from typer.testing import CliRunner

from harness.artifacts import disk
from harness.artifacts.store import Recipe, Store
from harness.cli import app
from harness.errors import HarnessError
from harness.lab.prune import prune
from harness.progress import Progress
from harness.report import runs
from harness.report.run import FAILED, PASSED, Run
from harness.report.runs import Limits
from harness.virtual import lasting
from harness.virtual.lasting import LastingSnapshots
from harness.virtual.running import ProcessId, Running, boot_id
from harness.virtual.snapshots import Snapshot

ROOT = Path(__file__).parents[1]
QUIET = Progress(enabled=False)
HERE, OLD, NEW = "kernel-000000000001", "kernel-000000000002", "kernel-000000000003"


def age(path: Path, days: float) -> None:
    """Have a file or folder, with all that is in it, be that old."""
    then = time.time() - days * 86400
    for one in (*path.rglob("*"), path):
        os.utime(one, (then, then))


def made(path: Path, days: float = 0, name: str = "manifest.json") -> Path:
    path.mkdir(parents=True)
    (path / name).write_text('{"a": 1}')
    (path / "content").write_bytes(bytes(100_000))
    age(path, days)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def pruned(store: Store, days: float = 14, *, remove: bool = True) -> dict[str, str]:
    """Prune a cache, and return why each of its parts is kept."""
    found = list(prune(store, {HERE}, {"described"}, days, remove=remove))
    assert all(piece.size >= 4096 for piece in found)
    return {piece.what: piece.kept for piece in found}


def test_artifacts_of_other_checkouts_go_when_nobody_uses_them(store: Store) -> None:
    here, old, new = made(store.root / HERE, 20), made(store.root / OLD, 20), made(store.root / NEW)
    stranger = made(store.root / "notes", 20)
    expected = {HERE: "needed here", OLD: "", NEW: "used today"}
    assert pruned(store, remove=False) == expected
    assert old.exists()
    assert pruned(store) == expected
    assert [path.exists() for path in (here, old, new, stranger)] == [True, False, True, True]
    assert pruned(store, days=0) == {HERE: "needed here", NEW: ""}
    assert not new.exists()


@pytest.mark.parametrize("name", ["debug-kernel", "given-kernel", "selftests"])
def test_artifacts_go_whatever_they_are_called(store: Store, name: str) -> None:
    recipe = Recipe(name, OLD[7:], lambda out, work: {}, 0, 1)
    age(store.get(recipe, QUIET), 20)
    made(store.unfinished / recipe.entry, 20, "source")
    assert pruned(store) == {recipe.entry: "", f"unfinished build of {recipe.entry}": ""}
    assert not store.path(recipe).exists()


def test_using_an_artifact_keeps_it(store: Store) -> None:
    recipe = Recipe("kernel", OLD[7:], lambda out, work: {}, 0, 1)
    age(store.get(recipe, QUIET), 20)
    store.get(recipe, QUIET)
    assert pruned(store) == {OLD: "used today"}


def test_an_artifact_that_a_process_was_started_from_stays(store: Store) -> None:
    old = made(store.root / OLD, 20)
    (old / "content").write_text("echo runs; read line")
    with subprocess.Popen(
        ["sh", old / "content"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        # Its command line is there a moment after it was started.
        assert process.stdout.readline() == b"runs\n"
        assert pruned(store, days=0) == {OLD: "a process uses it"}
    assert pruned(store, days=0) == {OLD: ""}


def test_what_interrupted_builds_left_goes(store: Store) -> None:
    for entry in (HERE, OLD, NEW):
        made(store.unfinished / entry, 20 if entry == OLD else 0, "source")
    killed, runs_on = made(store.root / f"{HERE}.tmp-a_b1"), made(store.root / f"{NEW}.tmp-c")
    with filelock.FileLock(store.root / f"{NEW}.lock"):
        assert pruned(store) == {
            f"unfinished build of {NEW}": "it is being built",
            f"unfinished build of {HERE}": "the next build goes on with it",
            f"unfinished build of {OLD}": "",
        }
    assert not killed.exists()
    assert runs_on.exists()
    assert {path.name for path in store.unfinished.iterdir()} == {HERE, NEW}


def test_the_build_of_a_kernel_tree_goes_and_the_tree_stays(store: Store, tmp_path: Path) -> None:
    tree = made(tmp_path / "linux", name="Makefile")
    build = made(store.root / "tree-000000000001", 20, "make.log")
    (build / "source").symlink_to(tree)
    for path in (build / "source", build):
        os.utime(path, (0, 0), follow_symlinks=False)
    assert pruned(store) == {f"tree-000000000001, the build of {tree}": ""}
    assert (build.exists(), (tree / "Makefile").exists()) == (False, True)


def test_hosts_that_do_not_run_keep_only_logs(store: Store) -> None:
    me = ProcessId.mine()
    folders = {
        name: made(store.root / "hosts" / name, days, "console.log")
        for name, days in (("described", 20), ("gone", 20), ("recent", 1.9), ("up", 20))
    }
    for name, folder in folders.items():
        (folder / "snapshots/clean").mkdir(parents=True)
        (folder / "snapshots/clean/memory").write_bytes(bytes(100_000))
        record = Running(me, me, None, 22, 0.0, True, "")
        if name != "up":
            dead = ProcessId(me.pid, me.started - 1, me.boot)
            record = Running(dead, dead, None, 22, 0.0, True, "")
        record.write(folder / "state.json")
        age(folder, 1.9 if name == "recent" else 20)
    assert pruned(store) == {
        "what host described has when it runs": "",
        "host described": "an inventory describes it",
        "what host gone has when it runs": "",
        "host gone": "",
        "what host recent has when it runs": "",
        "host recent": "it was used 2 days ago",
        "host up": "it runs",
    }
    assert not folders["gone"].exists()
    for name, left in (
        ("described", {"console.log", "content", "lock"}),
        ("recent", {"console.log", "content", "lock"}),
        ("up", {"console.log", "content", "lock", "snapshots", "state.json"}),
    ):
        assert {path.name for path in folders[name].iterdir()} == left


def test_snapshots_go_when_nobody_uses_them(store: Store) -> None:
    snapshots = LastingSnapshots(store.root, "built")
    for name in ("old", "recent", "restored"):
        folder = made(store.root / "host" / name)
        (folder / "manifest.json").write_text(json.dumps({"boot": boot_id()}))
        snapshots.keep(Snapshot(store.root / "host" / name))
    left = made(store.root / "snapshots" / ".gone-1", name="memory")

    def told(*, remove: bool) -> dict[str, str]:
        with snapshots.held("restored") as held:
            for name, days in (("old", 20), ("recent", 1.9), ("restored", 20)):
                if snapshots.has(name):
                    age(store.root / "snapshots/built" / name, days)
            assert held
            return pruned(store, remove=remove)

    for remove in (False, True):
        assert told(remove=remove) == {
            "what is left of a snapshot": "",
            "snapshot old": "",
            "snapshot recent": "used 2 days ago",
            "snapshot restored": "a host is restored from it",
        }
    assert not left.exists()
    assert [path.name for path in lasting.every(store.root)] == ["restored", "recent"]


def test_asking_what_would_go_is_no_use_of_a_host(store: Store) -> None:
    folder = made(store.root / "hosts" / "gone", 20, "console.log")
    for _ in range(3):  # as a machine does each night
        assert pruned(store, remove=False) == {"host gone": ""}
    assert pruned(store) == {"host gone": ""}
    assert not folder.exists()


def test_an_inventory_that_cannot_be_read_is_a_wrong_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(HarnessError, match=r"--lab: inventory .*nosuch\.yaml cannot be read"):
        CliRunner().invoke(
            app, ["lab", "prune", f"--lab={tmp_path}/nosuch.yaml"], catch_exceptions=False
        )


def test_a_file_that_is_gone_meanwhile_is_not_the_newest(tmp_path: Path) -> None:
    """A build or a run that goes on removes files between the list of them and the look at each."""
    (tmp_path / "stays").touch()
    age(tmp_path / "stays", 20)
    found = disk.newest([tmp_path / "gone", tmp_path / "stays"])
    assert round((time.time() - found) / 86400) == 20
    assert disk.newest([tmp_path / "gone"]) == 0


def test_others_may_remove_what_is_looked_at(tmp_path: Path) -> None:
    """A build beside this process makes folders and removes them."""
    for name in ("a", "b"):
        made(tmp_path / name / "below")
    found = []
    for path in disk.inside(tmp_path):
        found.append(path.name)
        if path.name == "below":
            for name in ("a", "b"):
                shutil.rmtree(tmp_path / name)
    assert sorted(found) == sorted([tmp_path.name, "a", "b", "below"])
    assert disk.used(tmp_path / "a") == disk.newest(disk.inside(tmp_path / "a")) == 0
    assert not disk.is_anothers(tmp_path / "a")


def test_a_link_is_no_run_of_its_own(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    ran(out, "20260101-000000", 3, outcome=FAILED)
    ran(out, "20260102-000000", 2, outcome=FAILED)
    ran(elsewhere, "moved", 5, outcome=FAILED)
    (out / "latest-night").symlink_to("20260102-000000")
    (out / "20250101-000000").symlink_to(elsewhere / "moved")
    names = ["20250101-000000", "20260101-000000", "20260102-000000"]
    assert [one.name for one in runs.ended(out)] == names
    assert runs.find("latest", out).name == names[-1]
    assert [one.folder.name for one in runs.runs(out)] == names
    gone = {one.run.folder.name: one.kept for one in runs.prune(out, Limits(number=1))}
    assert gone == {names[0]: "a link to another folder", names[1]: ""}
    assert (out / "latest-night/result.json").exists()
    assert (out / names[0] / "result.json").exists()


def test_only_the_latest_runs_are_kept(tmp_path: Path) -> None:
    for _ in range(5):
        Run.create(tmp_path).write()
    ended = sorted(path.name for path in tmp_path.iterdir())
    for name in ("20200101-000000", "20200102-000000"):
        (tmp_path / name / "allure-results").mkdir(parents=True)
    age(tmp_path / "20200101-000000", 2)
    (tmp_path / ".history.jsonl").touch()
    made(tmp_path / "other", 20)
    hil = [sys.executable, "-m", "harness.cli", "runs"]
    asked = subprocess.run(
        [*hil, "list", "--out", tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(asked.stdout.splitlines()) == 8
    assert f"{ended[0]} (" in asked.stdout
    assert "): FAILED (nothing ran): 0 passed" in asked.stdout
    assert "20200102-000000 (8 KiB): did not end, or has not ended yet\n" in asked.stdout
    removed = subprocess.run(
        [*hil, "prune", "--keep", "2", "--out", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(removed.stdout.splitlines()) == 5
    assert {path.name for path in tmp_path.iterdir()} == {
        *(".history.jsonl", "other", "20200102-000000"),
        *ended[-2:],
    }
    assert list(runs.prune(tmp_path, Limits(number=2))) == []


def ran(out: Path, name: str, days: float, lab: str = "a", outcome: str = PASSED) -> str:
    """Make a run of some 100 KiB that ended so many days ago."""
    test = {"id": "t", "outcome": outcome, "seconds": 1, "covers": []}
    folder = out / name
    folder.mkdir(parents=True)
    (folder / "logs").write_bytes(bytes(100_000))
    body = {"environment": {}, "lab": lab, "tests": [test]}
    (folder / "result.json").write_text(json.dumps(body))
    age(folder, days)
    return name


@pytest.mark.parametrize(
    ("limits", "gone", "kept"),
    [
        (["--keep=2"], "234", "1"),
        (["--keep=0"], "2345", "16"),
        (["--older-than=3.5"], "2", "1"),
        (["--older-than=9"], "", ""),
        (["--older-than=3.5", "--keep=3"], "23", "1"),
        (["--max-size=450K"], "23", "1"),
        (["--max-size=0.1G"], "", ""),
        (["--max-size=1K"], "2345", "16"),
    ],
)
def test_runs_go_by_number_age_and_size(
    tmp_path: Path, limits: list[str], gone: str, kept: str
) -> None:
    """The last good run of each lab stays."""
    for number, (lab, outcome) in enumerate(
        (("b", PASSED), ("a", PASSED), ("a", FAILED), ("a", FAILED), ("b", FAILED), ("a", PASSED)),
        start=1,
    ):
        ran(tmp_path, f"run-{number}", 6 - number + 0.1, lab, outcome)
    before = set(tmp_path.iterdir())
    arguments = ["runs", "prune", *limits, f"--out={tmp_path}"]
    told = CliRunner().invoke(app, [*arguments, "--dry-run"], catch_exceptions=False)
    assert set(tmp_path.iterdir()) == before
    assert [line[4] for line in told.stdout.splitlines() if line.endswith(": would go")] == [*gone]
    told = CliRunner().invoke(app, arguments, catch_exceptions=False)
    lines = told.stdout.splitlines()
    assert [line[4] for line in lines if line.endswith(": removed")] == [*gone]
    assert [line[4] for line in lines if ": kept: the last good run in lab " in line] == [*kept]
    assert {path.name for path in before - set(tmp_path.iterdir())} == {f"run-{n}" for n in gone}


def test_two_commands_may_prune_the_same_runs(tmp_path: Path) -> None:
    for number in range(3):
        ran(tmp_path, f"run-{number}", 1, outcome=FAILED)
    first, listed = runs.prune(tmp_path, Limits(number=0)), runs.runs(tmp_path)
    next(first), next(listed)
    assert len(list(runs.prune(tmp_path, Limits(number=0)))) == 2
    assert len(list(first)) == 2
    assert list(listed) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "limits", [["--dry-run"], ["--max-size=20"], ["--max-size=big"], [f"--max-size={'9' * 400}G"]]
)
def test_runs_do_not_go_without_a_limit(tmp_path: Path, limits: list[str]) -> None:
    with pytest.raises(HarnessError, match=r"nothing says which|--max-size: .* is no size"):
        CliRunner().invoke(
            app, ["runs", "prune", *limits, f"--out={tmp_path}"], catch_exceptions=False
        )
