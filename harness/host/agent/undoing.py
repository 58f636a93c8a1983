"""The work of undoing what this session has done, and what killed ones have left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from harness.host.agent import children, marks
from harness.host.agent.children import Result
from harness.host.agent.jobs import Work
from harness.host.agent.processes import KILL_SECONDS
from harness.host.agent.undos import Record, Undos

UNDO_SECONDS = 30.0


class Undoing:
    """What is undone on the host, and how far that is."""

    def __init__(self, folder: str, holder: object) -> None:
        self._folder = folder
        self._root = os.path.dirname(folder)
        self.undos = Undos(self._root)
        #: This session's.
        self.record = self.undos.record(os.path.basename(folder), holder)
        #: Whether what killed sessions have left is still being undone.
        self.taking_over = False
        #: What is done now, or was done last.
        self.doing = ""
        # What this session is told of earlier ones: it may ask again, if the link lost an answer.
        self._untold: list[Record] | None = None

    # -- what earlier sessions have left ---------------------------------------------------

    def take_over(self) -> Work | None:
        """Begin this session: at once, or by the work of undoing what killed sessions have left,
        which is returned. Raises OSError if that cannot be written down."""
        left = [
            entry.path
            for entry in os.scandir(self._root)
            if entry.is_dir(follow_symlinks=False) and entry.path != self._folder
        ]
        killed = self.undos.current
        if killed is None and left:
            killed = self.undos.record(os.path.basename(left[0]), None)
        self.undos.current = killed or self.record
        self.undos.write()
        if killed is None:
            return None
        self.taking_over = True
        return self._undo_killed(killed, left)

    def _undo_killed(self, killed: Record, folders: Iterable[str]) -> Work:
        killed["why"] = "its agent was killed"
        try:
            # Every other session below this root is dead, because this one has the lock.
            yield from self.sweep(
                killed,
                lambda mark: os.path.dirname(mark) == self._root and mark != self._folder,
                KILL_SECONDS,
            )
            yield from self.undo_all(killed)
            # An undo may still have used files there.
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            self.undos.end()
            self.undos.current = self.record
            self.undos.note()
            self.taking_over = False

    def inherited(self) -> dict[str, Any] | None:
        """Return how earlier sessions ended that nobody was told of; None while what they left is
        being undone."""
        if self.taking_over:
            return None
        if self._untold is None:
            self._untold = [one for one in self.undos.ended if not one["told"]]
            for one in self._untold:
                one["told"] = True
            self.undos.note()
        return {"inherited": self._untold}

    # -- a session's own -------------------------------------------------------------------

    def sweep(self, record: Record, belongs: Callable[[str], bool], seconds: float) -> Work:
        """Kill all processes whose mark is one that `belongs`."""
        self.doing = "end processes"
        result = yield from children.run(lambda: marks.sweep(belongs, seconds), seconds + 1)
        if result[0]:
            record["undone"]["processes"] = result

    def undo_all(self, record: Record) -> Work:
        """Run all undos of a record, the newest first."""
        yield from self._undo(record, record["undos"][::-1], record["undone"])

    def undo_now(self, names: Iterable[str]) -> Work:
        """Run those of this session's undos that have these names."""
        record = self.record
        done: dict[str, Result] = {}
        for name in names:
            yield from self._undo(record, [u for u in record["undos"][::-1] if u[0] == name], done)
        for name, result in done.items():
            record["undone"].pop(name, None)
            if result[0]:  # the end tells it, too: this answer may be lost
                record["undone"][name] = result
        self.undos.note()
        return {"undone": done}

    def _undo(self, record: Record, chosen: Iterable[list[str]], done: dict[str, Result]) -> Work:
        """Run these undos of a record in this order, and put the results into `done`."""
        for entry in list(chosen):
            name, command = entry
            self.doing = f"undo {name}"
            result = yield from children.run(_shell(command, self._folder), UNDO_SECONDS)
            done[name] = _merged(done.get(name), result)
            # The same undo may have been registered anew meanwhile: that one stays.
            record["undos"] = [one for one in record["undos"] if one is not entry]
            self.undos.note()

    def end(self) -> None:
        """Note that this session has given the host back, unless undos of it are left: the next
        agent runs these."""
        if not self.record["undos"]:
            self.undos.end()


def _shell(command: str, folder: str) -> Callable[[], NoReturn]:
    """Return a call that becomes a shell with this command, marked as the session's."""
    environment = marks.environment(folder)
    return lambda: os.execve("/bin/sh", ["/bin/sh", "-c", command], environment)


def _merged(old: Result | None, new: Result) -> Result:
    """Return the result of two commands of one name."""
    return [old[0] or new[0], old[1] + new[1]] if old else new
