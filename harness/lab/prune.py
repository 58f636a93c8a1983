"""Remove from the cache what nobody uses any more: old artifacts and snapshots, what interrupted
builds and killed runs left, and what virtual hosts that do not run need no longer."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import psutil

from harness.artifacts import disk
from harness.artifacts.store import MANIFEST, Store
from harness.virtual import keeper, lasting
from harness.virtual.machine import HOSTS
from harness.virtual.running import Running

_ENTRY = re.compile(r"([a-z-]+-[0-9a-f]{12})(\.tmp-\w+)?")
_DAY = 86400.0
#: The lock in the folder of a virtual host.
_LOCK = "lock"


@dataclass(frozen=True)
class Piece:
    """A part of the cache: what it is, its size in bytes, and why it is kept; `kept` is empty for
    one that is removed."""

    what: str
    size: int
    kept: str = ""


def prune(
    store: Store,
    needed: Collection[str],
    described: Collection[str],
    days: float,
    *,
    remove: bool = True,
) -> Iterator[Piece]:
    """Remove what nobody uses from a cache, unless `remove` is False, and yield its parts.

    `needed` are the entries that this checkout uses, and `described` the names of hosts in its
    inventories. They stay. Of other checkouts, what was used within so many days stays, and so does
    everything that a process uses now.
    """
    oldest = time.time() - days * _DAY
    yield from _entries(store, needed, oldest, remove)
    yield from _hosts(store.root / HOSTS, described, oldest, remove)
    yield from _snapshots(store.root, oldest, remove)


def _entries(store: Store, needed: Collection[str], oldest: float, remove: bool) -> Iterator[Piece]:
    in_use = _command_lines()
    for path in sorted([*store.root.glob("*"), *store.unfinished.glob("*")]):
        named = _ENTRY.fullmatch(path.name)
        if not named or not path.is_dir():
            continue
        entry, killed = named[1], named[2] is not None
        unfinished = killed or path.parent == store.unfinished
        what = f"{'unfinished build of ' if unfinished else ''}{entry}"
        # The build of a kernel has this link.
        if not unfinished and (path / "source").is_symlink():
            what += f", the build of {(path / 'source').readlink()}"
        with _held(store.lock(entry)) as held:
            used = _last_used(path)
            if not held:
                why = "it is being built"
            elif f"{path}/" in in_use:
                why = "a process uses it"
            elif killed:
                why = ""  # the next build begins with another folder
            elif entry in needed:
                why = "the next build goes on with it" if unfinished else "needed here"
            else:
                why = _recently(used) if used > oldest else ""
            yield _pruned(Piece(what, disk.used(path), why), [path], remove)


def _hosts(
    folder: Path, described: Collection[str], oldest: float, remove: bool
) -> Iterator[Piece]:
    for host in sorted(folder.glob("*/")):
        # To look at a host is no use of it: the lock, and the folder that gets it, do not count.
        inside = [one for one in host.glob("*") if one.name != _LOCK]
        what, used = f"host {host.name}", disk.newest(inside or [host])
        with _held(filelock.FileLock(host / _LOCK)) as held:
            record = Running.read(host / "state.json")
            if not held or (record and not record.gone()):
                yield Piece(what, disk.used(host), "it runs" if held else "it is in use")
                continue
            parts = [Path(path) for path in keeper.belongings(str(host))]
            if parts:
                size = sum(disk.used(part) for part in parts)
                yield _pruned(Piece(f"what {what} has when it runs", size), parts, remove)
            why = f"it was {_recently(used)}" if used > oldest else ""
            if host.name in described:
                why = "an inventory describes it"
            yield _pruned(Piece(what, disk.used(host), why), [host], remove)


def _snapshots(root: Path, oldest: float, remove: bool) -> Iterator[Piece]:
    for folder in lasting.remains(root):
        yield _pruned(Piece("what is left of a snapshot", disk.used(folder)), [folder], remove)
    for folder in lasting.every(root):
        used = lasting.last_used(folder)
        why = _recently(used) if used > oldest else ""
        if lasting.in_use(folder):
            why = "a host is restored from it"
        piece = Piece(f"snapshot {folder.name}", disk.used(folder), why)
        if remove and not why:
            lasting.discard(folder)
        yield piece


def _pruned(piece: Piece, paths: list[Path], remove: bool) -> Piece:
    if remove and not piece.kept:
        for path in paths:
            disk.remove(path)
    return piece


@contextlib.contextmanager
def _held(lock: filelock.BaseFileLock) -> Iterator[bool]:
    """Hold a lock while the body runs, if nobody has it. Yield whether it is held."""
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _command_lines() -> str:
    """Return the command lines of all processes: a QEMU names the files that it was started
    from."""
    found = psutil.process_iter(["cmdline"])
    return "\n".join(word for one in found for word in one.info["cmdline"] or ())


def _last_used(folder: Path) -> float:
    """Return when a part of the cache was last used, in seconds since 1970: an artifact's manifest
    has that time, and of other folders the newest file."""
    manifest = folder / MANIFEST
    return disk.newest([manifest] if manifest.exists() else [folder, *folder.glob("*")])


def _recently(used: float) -> str:
    days = (time.time() - used) / _DAY
    return "used today" if days < 1 else f"used {days:.0f} days ago"
