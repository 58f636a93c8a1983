"""Snapshots last in the cache: for whom, how long, how many."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.artifacts import disk
from harness.artifacts.store import SIZES, sizes
from harness.errors import LabError
from harness.virtual import lasting
from harness.virtual.lasting import LastingSnapshots
from harness.virtual.running import boot_id
from harness.virtual.snapshots import Snapshot

KIB = 1024


def saved(tmp_path: Path, name: str, note: str = "note") -> Snapshot:
    """Return a snapshot of 64 KiB that a host has just saved in its own folder."""
    snapshot = Snapshot(tmp_path / "host" / name)
    snapshot.folder.mkdir(parents=True)
    (snapshot.folder / "memory").write_bytes(os.urandom(64 * KIB))
    record = {"note": note, "boot": boot_id(), SIZES: sizes(snapshot.folder)}
    snapshot.manifest.write_text(json.dumps(record))
    return snapshot


def names(root: Path) -> list[str]:
    return [path.name for path in lasting.every(root)]


def unused_for(snapshots: LastingSnapshots, name: str, seconds: float) -> None:
    with snapshots.held(name) as snapshot:
        assert snapshot
    when = snapshot.manifest.stat().st_mtime - seconds
    os.utime(snapshot.manifest, (when, when))


def test_hosts_that_are_built_alike_have_the_same_snapshots(tmp_path: Path) -> None:
    LastingSnapshots(tmp_path, "one").keep(saved(tmp_path, "a"))
    assert not (tmp_path / "host/a").exists()
    alike, other = LastingSnapshots(tmp_path, "one"), LastingSnapshots(tmp_path, "two")
    assert alike.has("a")
    with alike.held("a") as snapshot:
        assert snapshot
        assert snapshot.note == "note"
    assert not other.has("a")
    with other.held("a") as nothing:
        assert nothing is None


def test_the_same_snapshot_may_come_twice(tmp_path: Path) -> None:
    snapshots = LastingSnapshots(tmp_path, "one")
    snapshots.keep(saved(tmp_path, "a", "first"))
    snapshots.keep(saved(tmp_path, "a", "second"))
    assert not (tmp_path / "host/a").exists()
    with snapshots.held("a") as snapshot:
        assert snapshot
        assert snapshot.note == "first"


def test_a_cache_on_two_file_systems_is_told(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        elsewhere = saved(Path(memory), "a")
        with pytest.raises(LabError, match=r"snapshot a cannot be moved to .*cross-device") as told:
            LastingSnapshots(tmp_path, "one").keep(elsewhere)
        assert f"have {tmp_path} on one file system" in str(told.value)
        assert elsewhere.complete, "it goes with its host"


@pytest.mark.parametrize("lost", ["manifest.json", "memory"])
def test_a_part_of_one_is_none(tmp_path: Path, lost: str) -> None:
    """As the machine's loss of power may leave it."""
    snapshots = LastingSnapshots(tmp_path, "one")
    snapshots.keep(saved(tmp_path, "a"))
    next(tmp_path.glob(f"snapshots/*/a/{lost}")).write_bytes(b"")
    assert not snapshots.has("a")
    with snapshots.held("a") as nothing:
        assert nothing is None
    snapshots.keep(saved(tmp_path, "b"))
    assert names(tmp_path) == ["a", "b"], "it is the first to go"
    snapshots.keep(saved(tmp_path, "a"))
    assert snapshots.has("a")


def test_none_outlives_a_boot_of_this_machine(tmp_path: Path) -> None:
    """Which may have lost its power before the disk had all of it."""
    snapshots = LastingSnapshots(tmp_path, "one")
    snapshots.keep(saved(tmp_path, "a"))
    (manifest,) = tmp_path.glob("snapshots/*/a/manifest.json")
    manifest.write_text(manifest.read_text().replace(boot_id(), "another boot"))
    assert not snapshots.has("a")
    with snapshots.held("a") as nothing:
        assert nothing is None


@contextlib.contextmanager
def restored_meanwhile(
    snapshots: LastingSnapshots, folder: Path
) -> Iterator[list[Snapshot | None]]:
    """Lock the folder of snapshot "a", as for its removal, while a thread restores it. Yield what
    the thread has got, once the context is left."""
    found: list[Snapshot | None] = []

    def restore() -> None:
        with snapshots.held("a") as snapshot:
            found.append(snapshot)

    thread = threading.Thread(target=restore)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.3)
        assert not found
        yield found
    finally:
        os.close(descriptor)
    thread.join()


def test_one_that_was_removed_and_came_again_is_not_locked(tmp_path: Path) -> None:
    """By who has waited for the one before."""
    snapshots = LastingSnapshots(tmp_path, "one")
    snapshots.keep(saved(tmp_path, "a"))
    (folder,) = lasting.every(tmp_path)
    with restored_meanwhile(snapshots, folder) as found:
        folder.rename(tmp_path / "gone")
        snapshots.keep(saved(tmp_path, "a"))
    assert found == [None]
    assert snapshots.has("a")


def test_those_that_were_not_used_for_a_day_go_first(tmp_path: Path) -> None:
    one, two = LastingSnapshots(tmp_path, "one"), LastingSnapshots(tmp_path, "two")
    for days, (snapshots, name) in enumerate([(one, "a"), (two, "b"), (one, "c"), (two, "d")]):
        snapshots.keep(saved(tmp_path, name))
        unused_for(snapshots, name, 86400 * (10 - days))
    assert one.has("a")
    each = disk.used(tmp_path / "snapshots/one/c")
    assert each > 64 * KIB
    one.make_room(2 * each + each // 2)
    assert names(tmp_path) == ["d", "a"]
    one.make_room(2 * each)
    assert names(tmp_path) == ["d", "a"]


def test_a_night_that_has_more_than_there_is_room_for_finds_some(tmp_path: Path) -> None:
    """It uses them in the same order each time, so that the oldest is always the next one."""
    snapshots = LastingSnapshots(tmp_path, "one")
    night = [str(number) for number in range(12)]
    found = 0
    for name in night * 5:
        if snapshots.has(name):
            found += 1
            continue
        if names(tmp_path):
            snapshots.make_room(8 * disk.used(lasting.every(tmp_path)[0]))
        snapshots.keep(saved(tmp_path, name))
        assert len(names(tmp_path)) <= 9
    assert found >= 5


def test_they_leave_as_much_free_as_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = LastingSnapshots(tmp_path, "one")
    for days, name in enumerate("abc"):
        snapshots.keep(saved(tmp_path, name))
        unused_for(snapshots, name, 86400 * (10 - days))
    each = disk.used(tmp_path / "snapshots/one/a")

    def usage(capacity: int, path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=capacity - len(names(path)) * each)

    for capacity, left in ((6, "abc"), (5, "bc"), (2, "c"), (1, "")):
        monkeypatch.setattr(shutil, "disk_usage", partial(usage, capacity * each))
        snapshots.make_room()
        assert names(tmp_path) == list(left)


def test_one_that_is_restored_now_stays(tmp_path: Path) -> None:
    snapshots = LastingSnapshots(tmp_path, "one")
    snapshots.keep(saved(tmp_path, "a"))
    snapshots.keep(saved(tmp_path, "b"))
    with snapshots.held("a"):
        snapshots.discard("a")
        snapshots.make_room(0)
        assert names(tmp_path) == ["a"]
        with snapshots.held("a") as snapshot:
            assert snapshot, "two hosts may restore it at a time"
    snapshots.discard("a")
    snapshots.discard("a")
    assert names(tmp_path) == []


def test_a_restore_waits_for_whoever_looks_at_the_snapshot(tmp_path: Path) -> None:
    """`hil lab prune` looks whether it is in use; that takes no time."""
    snapshots = LastingSnapshots(tmp_path, "one")
    snapshots.keep(saved(tmp_path, "a"))
    (folder,) = lasting.every(tmp_path)
    with restored_meanwhile(snapshots, folder) as found:
        pass
    assert found == [Snapshot(folder)]
    assert not lasting.in_use(folder)


def test_a_removal_that_is_killed_leaves_no_part_of_a_snapshot(tmp_path: Path) -> None:
    LastingSnapshots(tmp_path, "one").keep(saved(tmp_path, "a"))
    script = (
        "import os, shutil, sys; from pathlib import Path; from harness.virtual import lasting\n"
        "shutil.rmtree = lambda *_, **__: os._exit(1)\n"
        "lasting.discard(lasting.every(Path(sys.argv[1]))[0])\n"
    )
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert process.returncode == 1
    assert names(tmp_path) == []
    (left,) = lasting.remains(tmp_path)
    assert (left / "memory").exists()
