"""Who has a place: the name in which a run acquires it, and what such a name tells.

labgrid knows a user as HOST/USER, and lets go of nothing by itself: a run that is killed keeps its
place for ever. So the user's name has the process, and the next run on the same machine can tell
that it has ended.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.virtual.running import ProcessId

#: The PID namespace that a machine boots with (include/linux/proc_ns.h, PROC_PID_INIT_INO). Those
#: of containers have other numbers, of which two machines may have the same.
_FIRST_NAMESPACE = "pid:[4026531836]"
_MACHINE_ID, _NAMESPACE = Path("/etc/machine-id"), Path("/proc/self/ns/pid")
_DIGITS = 8
_USER = re.compile(
    r"(?P<user>.+)\.hil-(?P<pid>\d+)-(?P<started>\d+)-(?P<pids>[0-9a-f]{8})-(?P<boot>[0-9a-f]{8})"
)


@dataclass(frozen=True)
class Claimant:
    """Who has a place, or waits for one. `process` is None for somebody who is no run of ours.

    `pids` tells which machine's, or container's, process ids are meant, and `boot` which boot of
    it.
    """

    host: str
    user: str
    process: tuple[int, int] | None = None
    pids: str = ""
    boot: str = ""

    @classmethod
    def me(cls) -> Claimant:
        """Return this process."""
        mine = ProcessId.mine()
        # A slash, or white space, would make another name of it.
        host, user = (re.sub(r"[/\s]", "-", one) for one in (socket.gethostname(), _user()))
        return cls(host, user, (mine.pid, mine.started), _pids(), _short(mine.boot))

    @classmethod
    def parse(cls, name: str) -> Claimant:
        """Return whom a name of labgrid's means."""
        host, _, user = name.partition("/")
        found = _USER.fullmatch(user)
        if found is None:
            return cls(host, user)
        process = int(found["pid"]), int(found["started"])
        return cls(host, found["user"], process, found["pids"], found["boot"])

    @property
    def name(self) -> str:
        """Return the name for labgrid, HOST/USER."""
        if self.process is None:
            return f"{self.host}/{self.user}"
        pid, started = self.process
        return f"{self.host}/{self.user}.hil-{pid}-{started}-{self.pids}-{self.boot}"

    def ended(self) -> bool:
        """Return whether this is a run of this machine that has certainly ended. Of all others, and
        of containers and machines that are not this one, it is not known."""
        me = Claimant.me()
        if self.process is None or (self.host, self.pids) != (me.host, me.pids):
            return False
        return self.boot != me.boot or not ProcessId(*self.process, ProcessId.mine().boot).alive()

    def __str__(self) -> str:
        process = f", process {self.process[0]}" if self.process else ""
        return f"{self.user} on {self.host}{process}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that no user has
        return str(os.getuid())


@cache
def _pids() -> str:
    """Return what tells this machine's process ids, over a reboot, from those of all other
    machines; those of a container, whose namespace nothing tells apart for longer, in this boot."""
    namespace = str(_NAMESPACE.readlink())
    try:
        machine = _MACHINE_ID.read_text().strip()
    except OSError:
        machine = ""
    lasting = machine if namespace == _FIRST_NAMESPACE else ""
    return _short(f"{lasting or ProcessId.mine().boot} {namespace}")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
