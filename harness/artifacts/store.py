"""A content-keyed cache of built artifacts: atomic, locked, outside the checkout.

An entry is a directory `<root>/<name>-<key>` that appears by one rename when it is complete, so
that a reader never sees half of one. Its manifest has the size of each of its files: an entry that
lost one, or a part of one, is built again. A second builder of the same entry waits for the first.
A build keeps what it can go on from after an interruption in `<root>/unfinished/<name>-<key>`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

from harness.artifacts import disk
from harness.errors import LabError
from harness.progress import Progress

MANIFEST = "manifest.json"
#: What the manifest has besides what the build recorded: the sizes of the entry's files.
SIZES = "files"
#: What paths may not have that a kernel is built in (its Makefile), or that QEMU is told.
_UNUSABLE = re.compile(r"[\s:,]")


def cache_root() -> Path:
    """Return the cache's folder: `$HIL_CACHE`, or `hil` in the user's cache folder. Raises LabError
    for a path with which tools cannot work."""
    chosen = os.environ.get("HIL_CACHE")
    root = Path(chosen or platformdirs.user_cache_path("hil")).resolve()
    if chosen:
        # A relative path then means the same folder to whatever this process starts.
        os.environ["HIL_CACHE"] = str(root)
    if _UNUSABLE.search(str(root)):
        raise LabError(
            f"the cache {str(root)!r} has a space, a colon or a comma in its path",
            fix="set HIL_CACHE to a folder without: neither a kernel can be built there, nor can "
            "QEMU be told its files",
        )
    return root


def content_key(*parts: object) -> str:
    """Return a hash of these parts, twelve hex digits. Of a path the file's content counts, of
    bytes they themselves, of anything else its str()."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part
        data = data if isinstance(data, bytes) else str(data).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Recipe:
    """How to make one artifact. `build(out, work)` fills the folder `out` and returns what is to be
    recorded of it, such as versions and sources; the folder `work` survives an interruption and is
    removed on success."""

    name: str
    key: str
    build: Callable[[Path, Path], dict[str, object]]
    needs_bytes: int
    expected_seconds: float

    @property
    def entry(self) -> str:
        return f"{self.name}-{self.key}"


class Store:
    """A cache folder. Several processes may share it."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root()

    def path(self, recipe: Recipe) -> Path:
        """Return the folder where the entry is, or will be once it is built."""
        return self.root / recipe.entry

    def has(self, recipe: Recipe) -> bool:
        """Return whether the entry is there, and whole."""
        return damage(self.path(recipe)) is None

    def manifest(self, recipe: Recipe) -> dict[str, object]:
        """Return what the build recorded. Raises LabError if there is no whole entry."""
        path = self.path(recipe)
        wrong = damage(path)
        if wrong:
            raise LabError(
                f"artifact {recipe.entry} is not usable: {wrong}", fix="run `hil lab build`"
            )
        loaded = json.loads((path / MANIFEST).read_text())
        return {name: value for name, value in loaded.items() if name != SIZES}

    def get(self, recipe: Recipe, progress: Progress) -> Path:
        """Return the entry's folder; build the entry first if it is missing or damaged.

        Raises LabError when the cache cannot be used, the disk is too small or the build fails. An
        interrupted or failed build leaves no entry, only its `work` folder to go on from; one that
        fills the disk leaves nothing.
        """
        path = self.path(recipe)
        disk.prepare(self.root)
        if self.has(recipe):
            _note_use(path)
            return path
        build, seconds = f"build of {recipe.name}", recipe.expected_seconds
        with held(self.lock(recipe.entry), build, seconds, progress):
            wrong = damage(path)
            if wrong is None:
                return path
            what = f"build {recipe.name}"
            if path.exists():
                what += f" again, because {wrong}"
            self._discard_leftovers(recipe)
            work = self.unfinished / recipe.entry
            self.check_space(recipe)
            try:
                with progress.step(what, recipe.expected_seconds):
                    self._build(recipe, work)
            except disk.DiskFullError:
                shutil.rmtree(work, ignore_errors=True)
                raise
            shutil.rmtree(work, ignore_errors=True)
        return path

    @property
    def unfinished(self) -> Path:
        """Return the folder of what interrupted builds can go on from: a folder for each entry."""
        return self.root / "unfinished"

    def lock(self, entry: str) -> filelock.BaseFileLock:
        """Return the lock that the builder of an entry holds."""
        return filelock.FileLock(self.root / f"{entry}.lock", mode=0o644)

    def _build(self, recipe: Recipe, work: Path) -> None:
        # Files in an image have the modes that they get now.
        with _umask(0o022):
            work.mkdir(parents=True, exist_ok=True)
            out = Path(tempfile.mkdtemp(prefix=f"{recipe.entry}.tmp-", dir=self.root))
            try:
                with disk.told_when_full(f"building {recipe.name}", self.root, recipe.needs_bytes):
                    out.chmod(0o755)
                    record = {**recipe.build(out, work), SIZES: sizes(out)}
                    (out / MANIFEST).write_text(json.dumps(record, indent=1, sort_keys=True))
                    out.rename(self.path(recipe))
            except BaseException:
                shutil.rmtree(out, ignore_errors=True)
                raise

    def _discard_leftovers(self, recipe: Recipe) -> None:
        # Only a killed builder leaves these. Its lock is held here, so it no longer runs.
        for leftover in self.root.glob(f"{recipe.entry}.tmp-*"):
            shutil.rmtree(leftover)
        if self.path(recipe).exists():
            shutil.rmtree(self.path(recipe))

    def check_space(self, recipe: Recipe) -> None:
        """Raise LabError if the disk is too small to build an entry."""
        system, work = disk.FileSystem.of(self.root), self.unfinished / recipe.entry
        # What an interrupted build has already written is a part of what is needed.
        if system.free < recipe.needs_bytes and system.free + disk.used(work) < recipe.needs_bytes:
            raise LabError(
                f"building {recipe.name} needs {disk.size(recipe.needs_bytes)} in {self.root}: "
                f"{system}",
                fix="free some space there, for example with `hil lab prune`, or set HIL_CACHE to "
                "a folder on a larger disk",
            )


def damage(entry: Path) -> str | None:
    """Return what is wrong with the folder of an entry; None if it is whole."""
    try:
        known = json.loads((entry / MANIFEST).read_text())
    except OSError:
        return "it has no manifest"
    except ValueError:
        return "its manifest is damaged"
    if not known or not isinstance(known, dict):
        return "its manifest is empty"
    # Entries from before sizes were recorded have none.
    for name, size in known.get(SIZES, {}).items():
        try:
            found = (entry / name).lstat().st_size
        except OSError:
            return f"its file {name} is missing"
        if found != size:
            return f"its file {name} has {found} bytes instead of {size}"
    return None


def sizes(folder: Path) -> dict[str, int]:
    """Return the sizes of all files in a folder, by their paths from there, as a manifest has
    them."""
    return {
        str(path.relative_to(folder)): path.lstat().st_size
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _note_use(entry: Path) -> None:
    """Note in an entry that it is used now: what nobody has used for long can be pruned."""
    with contextlib.suppress(OSError):
        os.utime(entry / MANIFEST)


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def held(
    lock: filelock.BaseFileLock, what: str, seconds: float, progress: Progress
) -> Iterator[None]:
    """Hold a lock while the body runs. If another process does, show that its work, such as `build
    of x`, is waited for, which takes about so many seconds."""
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        with progress.step(f"wait for another {what}", seconds):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
