"""The lab's stack: which source of Linux and which QEMU it is built from, as it is written down.

What was found on the mirror is written down in the cache, with exact versions, so that no later
command asks the mirror, and nothing is built anew before `hil lab update`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import filelock
import pydantic

from harness.artifacts import disk
from harness.artifacts.parts import Stack, StackWish, find
from harness.errors import HarnessError, LabError
from harness.progress import Progress

#: The environment variable that says what is asked for.
VARIABLE = "HIL_STACK"
RECORD = "stack.json"


@dataclass(frozen=True)
class _Record:
    """What the cache knows: the stack of each wish, by its text, and the wish that was chosen."""

    chosen: str | None = None
    stacks: dict[str, Stack] = field(default_factory=dict)


def wished(root: Path) -> StackWish:
    """Return what is asked for: by `$HIL_STACK`, else by the last `hil lab build` or `hil lab
    update` with --stack on this cache, else the default. Raises HarnessError, and LabError for a
    damaged record."""
    asked = os.environ.get(VARIABLE)
    if asked:
        return StackWish.parse(asked, VARIABLE)
    chosen = _read(root).chosen
    return StackWish.parse(chosen, f"{root / RECORD}") if chosen else StackWish()


def recorded(root: Path, wish: StackWish | None = None) -> Stack | None:
    """Return the stack that is in use with a cache, or that a wish has there; None before the
    mirror was first asked for it. Raises HarnessError, and LabError for a damaged record."""
    return _read(root).stacks.get(str(wish or wished(root)))


def in_use(root: Path, progress: Progress, wish: StackWish | None = None) -> Stack:
    """Return the stack that is in use with a cache, or that a wish has there. One that is not
    written down yet is found on the mirror. Raises HarnessError, and LabError."""
    wish = wish or wished(root)
    known = recorded(root, wish)
    if known:
        return known
    disk.prepare(root)
    with _lock(root):
        # Another process may have found it meanwhile.
        known = recorded(root, wish)
        if known is None:
            known = find(wish, progress)
            _change(root, stacks={str(wish): known})
            progress.note(f"the lab's stack: {known}")
    return known


def write_down(root: Path, wish: StackWish, stack: Stack, *, choose: bool = False) -> None:
    """Write down the stack of a wish, and have later commands use it if it is to be chosen. A
    damaged record is replaced. Raises LabError."""
    disk.prepare(root)
    with _lock(root):
        stacks = {str(wish): stack}
        chosen = {"chosen": None if wish == StackWish() else str(wish)} if choose else {}
        try:
            _change(root, stacks=stacks, **chosen)
        except DamagedRecordError:
            (root / RECORD).unlink()
            _change(root, stacks=stacks, **chosen)


class DamagedRecordError(LabError):
    """The cache's record of stacks cannot be read."""


_FORM = pydantic.TypeAdapter(_Record)


def _read(root: Path) -> _Record:
    path = root / RECORD
    try:
        record = _FORM.validate_json(path.read_bytes())
        StackWish.parse(record.chosen or "", "chosen")
        return record
    except FileNotFoundError:
        return _Record()
    except (OSError, ValueError, HarnessError) as problem:
        raise DamagedRecordError(
            f"{path}, which says what the lab is built from, cannot be read: {problem}",
            fix="run `hil lab update`, which looks at the mirror again and replaces it",
        ) from None


def _change(root: Path, *, stacks: Mapping[str, Stack], **chosen: str | None) -> None:
    """Add to the record. The reader of the file sees all of it or nothing."""
    before = _read(root)
    after = replace(before, stacks={**before.stacks, **stacks}, **chosen)
    handle, path = tempfile.mkstemp(prefix=f"{RECORD}.", dir=root)
    try:
        with disk.told_when_full("writing down the lab's stack", root):
            with os.fdopen(handle, "wb") as file:
                file.write(_FORM.dump_json(after, indent=1))
            Path(path).chmod(0o644)
            Path(path).rename(root / RECORD)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise


def _lock(root: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(root / "stack.lock", mode=0o644)
