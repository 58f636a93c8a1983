"""The undos in the file that outlives an agent."""

from __future__ import annotations

import json
import os
import traceback
from typing import Any

#: Of how many ended sessions it is kept what came of their undos.
MOST_ENDED = 20

#: What is written down of one session.
Record = dict[str, Any]


class Undos:
    """What is to be undone on the host, and what came of it, in a file that outlives the agent.

    `current` is the session that has not given the host back yet, and `ended` are the last ones
    that have. Each is {"session", "holder", "why": why it ended, "undos": [[NAME, COMMAND], …]
    oldest first, "undone": {NAME: [exit status, output]}, "told": whether a later session was told
    of it}. The file is replaced as a whole, so that no reader sees a half.
    """

    def __init__(self, root: str) -> None:
        self.path = os.path.join(root, "undos")
        self.current: Record | None = None
        self.ended: list[Record] = []
        try:
            with open(self.path) as file:
                found = json.load(file)
            self.current, self.ended = found["current"], found["ended"]
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as problem:
            unreadable = self.record("", None)
            unreadable["undone"] = {self.path: [1, f"cannot be read: {problem!r}"]}
            self.ended.append(unreadable)

    @staticmethod
    def record(session: str, holder: object) -> Record:
        empty: Record = {"why": "", "undos": [], "undone": {}, "told": False}
        return {"session": session, "holder": holder, **empty}

    def write(self) -> None:
        """Write the file. Raises OSError."""
        data = json.dumps({"current": self.current, "ended": self.ended}).encode()
        new = os.open(f"{self.path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(new, "wb") as file:
            file.write(data)
        os.replace(f"{self.path}.new", self.path)

    def note(self) -> None:
        """Write the file if that is possible. If it is not, the next agent repeats an undo, or does
        not learn what came of it, and that harms less than to stop here."""
        try:
            self.write()
        except OSError:
            traceback.print_exc()

    def add(self, name: str, command: str) -> None:
        """Register an undo. One of the same name stays, unless it is the same command: this is
        then the newest place of it. Raises OSError if it cannot be written down: then it is not
        registered."""
        assert self.current
        before = self.current["undos"]
        entry = [name, command]
        self.current["undos"] = [*(one for one in before if one != entry), entry]
        try:
            self.write()
        except OSError:
            self.current["undos"] = before
            raise

    def end(self) -> None:
        """Note that the current session has given the host back."""
        if self.current:
            self.ended = [*self.ended, self.current][-MOST_ENDED:]
            self.current = None
        self.note()
