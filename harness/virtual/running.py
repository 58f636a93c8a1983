"""The record of a virtual host's process, which outlives the command that started it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Running:
    """The content of `state.json`. `started` is when the process was created, in seconds since
    1970; it tells the process from a later one with the same `pid`. `owner` is the pid that will
    take the machine down again, or None when a person brought it up to stay."""

    pid: int
    started: float
    port: int
    owner: int | None
    built_from: str

    @classmethod
    def read(cls, path: Path) -> Running | None:
        """Return the record in a file; None when the machine does not run, or there is no valid
        record."""
        try:
            state = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return state if state.alive() else None

    def write(self, path: Path) -> None:
        """Write the record to a file, atomically."""
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(path)

    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def gone(self) -> bool:
        """Return whether the process has ended. A child of this process is reaped."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        except ChildProcessError:
            return not self.alive()

    def orphaned(self) -> bool:
        """Return whether the owner, which would have taken the machine down, has ended."""
        return self.owner is not None and not psutil.pid_exists(self.owner)
