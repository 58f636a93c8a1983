"""Who has a host: what a lock's file says to those who wait for it."""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Holder:
    """A process of this harness. `since` is for people only: the wall clock of its machine, when it
    took the host."""

    user: str
    machine: str
    pid: int
    since: str

    @classmethod
    def me(cls) -> Holder:
        """Return this process, as of now."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container may run as a number that no user has
            user = str(os.getuid())
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        return cls(user, socket.gethostname(), os.getpid(), since)

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """Return what `json` gave; None if it is not that, as in a lock that was just taken."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def json(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return f"{self.user} on {self.machine}, process {self.pid}, since {self.since}"
