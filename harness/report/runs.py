"""Old runs: list them, and remove all but the latest."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.artifacts import disk

#: A run without a result, in which nothing has been written for so long, was killed.
KILLED_SECONDS = 86400.0


@dataclass(frozen=True)
class OldRun:
    """The folder of a run, its size in bytes, and what the first line of its summary says."""

    folder: Path
    size: int
    verdict: str


def runs(out: Path) -> Iterator[OldRun]:
    """Yield the runs in a folder, the oldest first."""
    for folder in sorted(out.glob("*/")):
        if (folder / "allure-results").is_dir() or (folder / "result.json").exists():
            yield OldRun(folder, disk.used(folder), _verdict(folder))


def prune(out: Path, keep: int) -> Iterator[OldRun]:
    """Remove all but the latest `keep` runs that have ended, and those that were killed, and yield
    what is removed. A run that may still go on is left alone."""
    ended = [one for one in runs(out) if (one.folder / "result.json").exists()]
    killed = [one for one in runs(out) if one not in ended and _untouched(one.folder)]
    for one in sorted(ended[: max(0, len(ended) - keep)] + killed, key=lambda run: run.folder):
        shutil.rmtree(one.folder)
        yield one


def _verdict(folder: Path) -> str:
    with contextlib.suppress(OSError, UnicodeError, IndexError):
        return (folder / "summary.md").read_text().splitlines()[0].replace("**", "")
    return "did not end, or has not ended yet"


def _untouched(folder: Path) -> bool:
    newest = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    return time.time() - newest > KILLED_SECONDS
