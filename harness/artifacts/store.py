"""A content-keyed cache of built artifacts: atomic, locked, outside the checkout.

An entry is a directory `<root>/<name>-<key>` that appears by one rename when it is complete, so
that a reader never sees half of one. A second builder of the same entry waits for the first. A
build keeps what it can go on from after an interruption in `<root>/unfinished/<name>-<key>`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

from harness.errors import LabError
from harness.progress import Progress

MANIFEST = "manifest.json"


def cache_root() -> Path:
    """Return the cache's folder: `$HIL_CACHE`, or `hil` in the user's cache folder."""
    chosen = os.environ.get("HIL_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("hil")


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
        return (self.path(recipe) / MANIFEST).is_file()

    def manifest(self, recipe: Recipe) -> dict[str, object]:
        """Return what the build recorded. Raises LabError if there is no such entry."""
        try:
            loaded = json.loads((self.path(recipe) / MANIFEST).read_text())
        except (OSError, ValueError) as problem:
            raise LabError(
                f"artifact {recipe.entry} is not usable: {problem}", fix="run `hil lab build`"
            ) from None
        assert isinstance(loaded, dict)
        return loaded

    def get(self, recipe: Recipe, progress: Progress) -> Path:
        """Return the entry's folder; build the entry first if it is missing.

        Raises LabError when the disk is too small or the build fails. An interrupted or failed
        build leaves no entry, only its `work` folder to go on from.
        """
        path = self.path(recipe)
        if self.has(recipe):
            return path
        self.root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.root / f"{recipe.entry}.lock")
        with _held(lock, recipe, progress):
            if self.has(recipe):
                return path
            self._discard_leftovers(recipe)
            self._check_space(recipe)
            work = self.root / "unfinished" / recipe.entry
            work.mkdir(parents=True, exist_ok=True)
            out = Path(tempfile.mkdtemp(prefix=f"{recipe.entry}.tmp-", dir=self.root))
            try:
                out.chmod(0o755)
                with progress.step(f"build {recipe.name}", recipe.expected_seconds):
                    record = recipe.build(out, work)
                (out / MANIFEST).write_text(json.dumps(record, indent=1, sort_keys=True))
                out.rename(path)
            except OSError as problem:
                if problem.errno != errno.ENOSPC:
                    raise
                raise LabError(
                    f"disk full while building {recipe.name} in {self.root}",
                    fix="free some space, or point HIL_CACHE at a larger disk; "
                    "the build goes on where it stopped",
                ) from problem
            finally:
                shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)
        return path

    def _discard_leftovers(self, recipe: Recipe) -> None:
        # Only a killed builder leaves these. Its lock is held here, so it no longer runs.
        for leftover in self.root.glob(f"{recipe.entry}.tmp-*"):
            shutil.rmtree(leftover)
        if self.path(recipe).exists():
            shutil.rmtree(self.path(recipe))

    def _check_space(self, recipe: Recipe) -> None:
        free = shutil.disk_usage(self.root).free
        if free < recipe.needs_bytes:
            raise LabError(
                f"building {recipe.name} needs {recipe.needs_bytes >> 20} MiB in {self.root}, "
                f"only {free >> 20} MiB are free",
                fix="free some space, or point HIL_CACHE at a larger disk",
            )


@contextlib.contextmanager
def _held(lock: filelock.BaseFileLock, recipe: Recipe, progress: Progress) -> Iterator[None]:
    """Hold a lock while the body runs; show that it is waited for when another process holds it."""
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        waiting = f"wait for another build of {recipe.name}"
        with progress.step(waiting, recipe.expected_seconds):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
