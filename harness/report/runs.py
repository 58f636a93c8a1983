"""The runs in a folder: list them, find one by its name, and remove old ones."""

from __future__ import annotations

import contextlib
import difflib
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.artifacts import disk
from harness.errors import HarnessError
from harness.report.run import FAILED, FIXED, KNOWN, PASSED, load

#: A run without a result, in which nothing has been written for so long, was killed.
KILLED_SECONDS = 86400.0
_DAY = 86400.0
#: The latest run that has ended, and the n-th before it.
_LATEST = re.compile(r"latest(?:~([0-9]+))?")
_RESULT = "result.json"


@dataclass(frozen=True)
class OldRun:
    """The folder of a run, its size in bytes, and what the first line of its summary says. `ended`
    is when it ended, in seconds since 1970, None for one that has not, or was killed. `good` says
    whether it passed, in the lab `lab`."""

    folder: Path
    size: int
    verdict: str
    ended: float | None
    lab: str
    good: bool


@dataclass(frozen=True)
class Limits:
    """Which runs may stay: the latest `number`, those that ended within `days`, and as many of the
    latest as take `size` bytes. None is no limit. A run goes if one of them says so."""

    number: int | None = None
    days: float | None = None
    size: int | None = None


@dataclass(frozen=True)
class Pruned:
    """A run that the limits remove, and why it is kept all the same; `kept` is empty for one that
    is removed."""

    run: OldRun
    kept: str = ""


def runs(out: Path) -> Iterator[OldRun]:
    """Yield the runs in a folder, the oldest first."""
    for folder in sorted(out.glob("*/")):
        if _is_second_name(folder):
            continue
        ended = _written(folder / _RESULT)
        if ended is not None or (folder / "allure-results").is_dir():
            body = _read(folder)
            lab, good = str(body.get("lab", "")), is_good(body)
            yield OldRun(folder, disk.used(folder), _verdict(folder), ended, lab, good)


def ended(out: Path) -> list[Path]:
    """Return the folders of the runs that left results, the oldest first."""
    found = (result.parent for result in out.glob(f"*/{_RESULT}"))
    return sorted(folder for folder in found if not _is_second_name(folder))


def _is_second_name(folder: Path) -> bool:
    """Return whether a folder is a link to one beside it, such as `last-night`: it is no run more,
    and its name says nothing of the order."""
    return folder.is_symlink() and folder.resolve().parent == folder.parent.resolve()


def is_good(result: Mapping[str, Any]) -> bool:
    """Return whether the result.json of a run says that it passed: tests ran, none failed, and the
    run did not end early."""
    tests = result.get("tests", ())
    return (
        not result.get("broken")
        and any(test["outcome"] in (PASSED, KNOWN) for test in tests)
        and not any(test["outcome"] in (FAILED, FIXED) for test in tests)
    )


def find(name: str, out: Path) -> Path:
    """Return the folder of a run: `name` is a path, a run's name in `out`, `latest`, or `latest~N`
    for the N-th before that. Raises HarnessError."""
    path = Path(name)
    if path.exists():
        return path.parent if path.is_file() else path
    known = ended(out)
    wanted = _LATEST.fullmatch(name)
    if wanted:
        back = int(wanted[1] or 0)
        if back < len(known):
            return known[-1 - back]
        raise HarnessError(
            f"there is no run {name} in {out}, which has {len(known)}",
            fix="run some tests of suites first, or name the folder of a run",
        )
    if (out / name).is_dir():
        return out / name
    close = difflib.get_close_matches(name, [run.name for run in known], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise HarnessError(
        f"there is no run {name}, neither as a folder nor in {out}",
        fix=f"{hint}`hil runs list` shows all; `latest` is the latest",
    )


def last_good(run: Path, result: Mapping[str, Any]) -> Path:
    """Return the folder of the latest run beside `run` that passed before it, in the same lab;
    `result` is the result.json of `run`. Raises HarnessError if there is none."""
    lab = result.get("lab", "")
    for other in reversed(ended(run.resolve().parent)):
        body = _read(other) if other.name < run.resolve().name else {}
        if body.get("lab", "") == lab and is_good(body):
            return other
    raise HarnessError(
        f"no run in lab {lab} before {run.name} is good",
        fix="name the run to compare with; `hil runs list` shows all",
    )


def prune(out: Path, limits: Limits, *, remove: bool = True) -> Iterator[Pruned]:
    """Remove the runs that exceed a limit, unless `remove` is False, and those that were killed,
    and yield them. The last good run of each lab stays, a run that may still go on, and one that is
    elsewhere, to which there is a link."""
    every = list(runs(out))
    done = [one for one in every if one.ended is not None]
    killed = [one for one in every if one.ended is None and _untouched(one.folder)]
    last = {one.lab: one for one in done if one.good}
    exceeding = _exceeding(done, limits, list(last.values()))
    for one in every:
        if one not in killed and one not in exceeding:
            continue
        kept = "a link to another folder" if one.folder.is_symlink() else ""
        if last.get(one.lab) is one:
            kept = f"the last good run in lab {one.lab}"
        if remove and not kept:
            # Another command may prune the same runs.
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(one.folder)
        yield Pruned(one, kept)


def _exceeding(done: list[OldRun], limits: Limits, stay: Collection[OldRun]) -> list[OldRun]:
    """Return which of these runs, the oldest first, exceed a limit. What is to `stay` takes its
    part of the size."""
    oldest = None if limits.days is None else time.time() - limits.days * _DAY
    found, taken = [], sum(one.size for one in stay)
    for place, one in enumerate(reversed(done)):
        if one not in stay:
            taken += one.size
        if (
            (limits.number is not None and place >= limits.number)
            or (oldest is not None and one.ended is not None and one.ended < oldest)
            or (limits.size is not None and taken > limits.size)
        ):
            found.append(one)
    return found


def _read(folder: Path) -> dict[str, Any]:
    """Return the result.json of a run, empty if it has none that can be read."""
    with contextlib.suppress(HarnessError):
        return load(folder)
    return {}


def _verdict(folder: Path) -> str:
    with contextlib.suppress(OSError, UnicodeError, IndexError):
        return (folder / "summary.md").read_text(encoding="utf-8").splitlines()[0].replace("**", "")
    return "did not end, or has not ended yet"


def _written(file: Path) -> float | None:
    """Return when a file was written, in seconds since 1970; None if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_mtime
    return None


def _untouched(folder: Path) -> bool:
    return time.time() - disk.newest(disk.inside(folder)) > KILLED_SECONDS
