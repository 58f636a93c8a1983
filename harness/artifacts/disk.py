"""Folders and the file systems that they are on: whether one can be written, and what is free."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.errors import LabError

#: With less than this free, whatever fails fails because the disk is full.
_FULL_BYTES, _FULL_FILES = 1 << 20, 16


class DiskFullError(LabError):
    """A disk is full."""


@dataclass(frozen=True)
class FileSystem:
    """The file system of a path: where it is mounted, its type, and how many bytes and files a user
    may still write."""

    mounted: str
    kind: str
    free: int
    free_files: int | None

    @classmethod
    def of(cls, path: Path) -> FileSystem:
        """Return the file system that has a path, or will have it once it is made."""
        while not path.exists():
            path = path.parent
        found = os.statvfs(path)
        place = path.resolve()
        while not place.is_mount():
            place = place.parent
        kinds = {one.mountpoint: one.fstype for one in psutil.disk_partitions(all=True)}
        # Some file systems, such as btrfs, have no table of files, and tell 0 of 0.
        files = found.f_favail if found.f_files else None
        return cls(str(place), kinds.get(str(place), ""), found.f_bavail * found.f_frsize, files)

    @property
    def full(self) -> bool:
        return self.free < _FULL_BYTES or (
            self.free_files is not None and self.free_files < _FULL_FILES
        )

    def __str__(self) -> str:
        free = f"{size(self.free)} free"
        if self.free_files is not None and self.free_files < _FULL_FILES:
            free += f", and only {self.free_files} more files allowed"
        return f"the file system at {self.mounted} ({', '.join(filter(None, (self.kind, free)))})"


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"


def inside(path: Path) -> Iterator[Path]:
    """Yield a file, or a folder and all that is in it. A folder that is gone once its turn comes is
    empty."""
    yield path
    for folder, folders, files in os.walk(path):
        yield from (Path(folder, name) for name in (*folders, *files))


def used(path: Path) -> int:
    """Return how many bytes a file, or a folder with all that is in it, takes on its disk; 0 if it
    does not exist."""
    total, links = 0, set()
    for one in inside(path):
        try:
            found = one.lstat()
        except OSError:
            continue
        if found.st_nlink == 1 or (found.st_dev, found.st_ino) not in links:
            total += found.st_blocks * 512
        links.add((found.st_dev, found.st_ino))
    return total


def newest(paths: Iterable[Path]) -> float:
    """Return when the newest of these files was written, in seconds since 1970; 0 without any. One
    that is gone by now is left out: whoever has the folder removes files meanwhile."""
    found = 0.0
    for path in paths:
        with suppress(FileNotFoundError):
            found = max(found, path.lstat().st_mtime)
    return found


def owner(path: Path) -> str:
    """Return the name of the user that a file belongs to, or the number of one without name."""
    uid = path.lstat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def prepare(folder: Path) -> None:
    """Make the cache's folder, if need be, and check that it is this user's. Raises LabError.

    Users cannot share a cache: the key of the host that it has is private, and so are the sockets
    of a host that runs. Root, who can write everything, may use any.
    """
    fix = "set HIL_CACHE to a folder of your own"
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as problem:
        raise LabError(
            f"the cache {folder} cannot be made: {problem.strerror}: {problem.filename}", fix=fix
        ) from None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise LabError(f"the cache {folder} cannot be written: it is {owner(folder)}'s", fix=fix)
    if os.geteuid() == 0:
        return
    strangers = sorted(one.name for one in folder.iterdir() if is_anothers(one))
    if strangers:
        whose = owner(folder / strangers[0])
        raise LabError(
            f"the cache {folder} is used by {whose}, who has {strangers[0]} there", fix=fix
        )


def is_anothers(path: Path) -> bool:
    """Return whether a file is another user's. One that is gone is nobody's."""
    # Whoever builds something there meanwhile renames and removes files.
    with suppress(FileNotFoundError):
        return path.lstat().st_uid != os.geteuid()
    return False


@contextmanager
def told_when_full(what: str, folder: Path, needs: int | None = None) -> Iterator[None]:
    """Raise DiskFullError if the body fails because the disk of `folder` is full, whether it or a
    tool says so. `what` is being done, and `needs` so many bytes at most, where that is known."""
    try:
        yield
    except DiskFullError:
        raise
    except (OSError, LabError) as problem:
        number = problem.errno if isinstance(problem, OSError) else None
        system = FileSystem.of(folder)
        # A tool may have removed what it wrote before it ended.
        told = number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(problem)
        if not told and not system.full:
            raise
        raise DiskFullError(
            f"disk full while {what}{f', which needs {size(needs)}' if needs else ''}: {system}",
            fix=f"free some space there, for example with `hil lab prune` and `hil runs prune`, or "
            f"set HIL_CACHE to a folder on a larger disk than that of {folder}",
        ) from problem


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
