"""The folder of one bisection: what it has found out, its logs and runs, and what it built."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import filelock
from pydantic import TypeAdapter, ValidationError

from harness.bisect.question import Known
from harness.errors import HarnessError

_KNOWN = TypeAdapter(Known)
#: What the path of a folder must not have in which the harness builds.
_UNUSABLE = re.compile(r"[\s:,]")


class StateFolder:
    """The folder of a bisection. Everything in it but `worktree` and `build` stays when it ends."""

    def __init__(self, folder: Path) -> None:
        """Raises HarnessError for a path in which nothing can be built."""
        self.folder = folder.resolve()
        if _UNUSABLE.search(str(self.folder)):
            raise HarnessError(
                f"--folder: nothing can be built in {str(self.folder)!r}",
                fix="name a folder without a space, a colon or a comma in its path",
            )
        self.worktree, self.build = self.folder / "worktree", self.folder / "build"
        self.products, self.runs = self.folder / "products", self.folder / "runs"
        self.logs, self.summary = self.folder / "logs", self.folder / "bisect.md"
        self._file = self.folder / "state.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Have the folder for oneself. Raises HarnessError if another process has it."""
        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            held = filelock.FileLock(self.folder / ".lock").acquire(blocking=False)
        except filelock.Timeout:
            raise HarnessError(
                f"another `hil bisect` works in {self.folder}",
                fix="wait for its end, or name another folder with --folder",
            ) from None
        with held:
            yield

    def load(self) -> Known | None:
        """Return what was found out before; None in a new folder. Raises HarnessError if it cannot
        be read."""
        try:
            return _KNOWN.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as problem:
            raise HarnessError(
                f"{self._file} is no bisection's: {problem}",
                fix="remove the folder, or name another one with --folder",
            ) from None

    def save(self, known: Known) -> None:
        """Write what was found out, as a whole or not at all."""
        new = self._file.with_suffix(".new")
        new.write_bytes(_KNOWN.dump_json(known, indent=1) + b"\n")
        new.replace(self._file)
