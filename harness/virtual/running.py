"""The record of a virtual host's process, which outlives whoever started it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Running:
    """What `state.json` says about a machine. `started` is when its process was created, seconds
    since 1970: a pid alone may have been given to another process since. `owner` is the pid that
    will take it down again, or None when a person brought it up to stay."""

    pid: int
    started: float
    port: int
    owner: int | None
    built_from: str

    @classmethod
    def read(cls, path: Path) -> Running | None:
        """The record of a live machine; that of a dead one, or a broken one, is none."""
        try:
            state = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return state if state.alive() else None

    def write(self, path: Path) -> None:
        """Whole or not at all."""
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
        """Whether the process has ended. Our own child is collected; another's is its parent's."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        except ChildProcessError:
            return not self.alive()

    def orphaned(self) -> bool:
        return self.owner is not None and not psutil.pid_exists(self.owner)
