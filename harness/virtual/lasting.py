"""The lasting snapshots of virtual hosts, which are in the cache. All hosts that are built alike
share them, in this run and in later ones: a kind of guest is booted once for as long as
nothing changes that it is made of, and this machine is not booted.

A snapshot is as large as the memory that its host uses, some 400 MB, and a night has ninety of
them. Some go once all take too much, or more than they leave free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.artifacts import disk
from harness.errors import LabError
from harness.virtual.snapshots import Snapshot

#: The folder in the cache that has a folder for each way in which hosts are built.
SNAPSHOTS = "snapshots"
#: What all snapshots may take together.
MOST_BYTES = 40 << 30
_DAY = 86400.0
#: Locks a folder for its removal, or to see whether a host is restored from it.
_AT_ONCE = fcntl.LOCK_EX | fcntl.LOCK_NB
#: How the name of a folder begins that is being removed.
_GOES = ".gone-"


@dataclass(frozen=True)
class LastingSnapshots:
    """The snapshots in the cache `root` of hosts that are `built` in one way: a hash of all that
    decides whether such a host can go on from one."""

    root: Path
    built: str

    @property
    def _folder(self) -> Path:
        return self.root / SNAPSHOTS / self.built

    def has(self, name: str) -> bool:
        """Return whether there is such a snapshot, which counts as used now."""
        return Snapshot(self._folder / name).use()

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[Snapshot | None]:
        """Yield a snapshot that nobody removes meanwhile; None if there is none."""
        with _locked(self._folder / name, fcntl.LOCK_SH) as there:
            found = Snapshot(self._folder / name)
            yield found if there and found.use() else None

    def keep(self, saved: Snapshot) -> None:
        """Keep a snapshot that was just saved: its folder is moved, or removed if another host has
        brought the same one meanwhile. Raises LabError if it cannot be moved."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = self._folder / saved.folder.name
        if not self.has(target.name):
            discard(target)  # a part of one
        try:
            saved.folder.rename(target)
        except OSError as problem:
            if not self.has(target.name):
                raise LabError(
                    f"snapshot {target.name} cannot be moved to {self._folder}: {problem.strerror}",
                    fix=f"have {self.root} on one file system, with what is in it",
                ) from problem
            shutil.rmtree(saved.folder)

    def discard(self, name: str) -> None:
        """Remove a snapshot, if there is one, unless somebody restores it now."""
        discard(self._folder / name)

    def make_room(self, most: int = MOST_BYTES) -> None:
        """Remove snapshots, of any hosts, while all take more than `most` bytes, or more than they
        leave free on their disk: first those that were not used for a day, beginning with the
        oldest, then any others. A night that uses more than there is room for has them in the same
        order each time: if the oldest went, none would be there when its turn comes."""
        for one in remains(self.root):
            disk.remove(one)
        sizes = {one: disk.used(one) for one in every(self.root)}
        yesterday = time.time() - _DAY
        while sum(sizes.values()) > min(most, shutil.disk_usage(self.root).free):
            oldest = next(iter(sizes))
            goes = oldest if last_used(oldest) < yesterday else random.choice(list(sizes))
            discard(goes)
            del sizes[goes]


def every(root: Path) -> list[Path]:
    """Return the folders of all snapshots in a cache, the one that was not used for longest
    first."""
    return sorted((root / SNAPSHOTS).glob("[!.]*/*"), key=last_used)


def last_used(snapshot: Path) -> float:
    """Return when a snapshot was used, in seconds since 1970; 0 for what is no complete one."""
    one = Snapshot(snapshot)
    return disk.newest([one.manifest]) if one.complete else 0.0


def remains(root: Path) -> list[Path]:
    """Return the folders of snapshots whose removal was interrupted."""
    return list((root / SNAPSHOTS).glob(f"{_GOES}*"))


def in_use(snapshot: Path) -> bool:
    """Return whether a host is restored from a snapshot now."""
    with _locked(snapshot, _AT_ONCE) as free:
        return not free and snapshot.exists()


def discard(snapshot: Path) -> None:
    """Remove the folder of a snapshot, if it is there and no host is restored from it now."""
    with _locked(snapshot, _AT_ONCE) as free:
        if not free:
            return
        # Nobody sees a part of one, whenever this process is killed.
        goes = snapshot.parents[1] / f"{_GOES}{uuid.uuid4().hex}"
        try:
            snapshot.rename(goes)
        except FileNotFoundError:  # it was removed before this process had the lock
            return
    shutil.rmtree(goes, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[bool]:
    """Lock a folder while the body runs, shared as soon as that can be, or exclusive if that can be
    at once. Yield whether it is locked: not if there is no such folder, or another one by then.
    Whoever has it exclusive renames it and no more, and a killed process has no lock: the wait for
    a shared one needs no deadline."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            yield False
            return
        yield _is_at(folder, descriptor)
    finally:
        os.close(descriptor)


def _is_at(folder: Path, descriptor: int) -> bool:
    """Return whether a folder that was opened is still at its place."""
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False
