"""The session that the agent owns, from its start to its end."""

from __future__ import annotations

import time
import traceback
from typing import Any

from harness.host.agent.jobs import Job, Jobs, Work
from harness.host.agent.kernel_log import KernelLog
from harness.host.agent.lock import Lock
from harness.host.agent.processes import Processes
from harness.host.agent.undoing import Undoing

ASKED = "the harness ended it"


class Agent:
    """All state of the agent. One thread uses it, and none of its methods waits."""

    def __init__(self, folder: str, lease: float, lock: Lock, holder: object) -> None:
        self.folder = folder
        self._lock = lock
        self.lease = lease
        self.renew()
        self.processes = Processes(folder)
        self.jobs = Jobs()
        self.over: str | None = None  # why the session ends, once it does
        self.given_back = False
        self._reason = "its lease ran out"  # why it would end if the lease ended now
        self._ending: Job | None = None
        self._kernel_log: KernelLog | None = None
        self.undoing = Undoing(folder, holder)
        left = self.undoing.take_over()
        if left is not None:
            self.jobs.add(left)

    def adopt(self, holder: object) -> None:
        """Have the session be another run's, which goes on with it."""
        self.renew()
        self._lock.tell(holder)
        self.undoing.record["holder"] = holder
        self.undoing.undos.note()

    # -- time ------------------------------------------------------------------------------

    def renew(self) -> None:
        """Start the lease anew."""
        self._expires = time.monotonic() + self.lease

    def expire(self, reason: str) -> None:
        """Have the session end for this reason at the next tick."""
        self._reason, self._expires = reason, 0.0

    def tick(self) -> float:
        """Go on with the work, and end the session when its lease has run out. Return the seconds
        until the next call."""
        now = time.monotonic()
        if self._kernel_log:
            try:
                self._kernel_log.read()  # the kernel's buffer is a ring
            except Exception:  # a witness that cannot be had ends no session
                traceback.print_exc()
        if now >= self._expires:
            self.end(self._reason)
        self.jobs.advance()
        return 0.01 if self.jobs.busy else max(0.05, min(1.0, self._expires - now))

    # -- the kernel's log ------------------------------------------------------------------

    def watch_kernel(self, pattern: str) -> None:
        self._kernel_log = KernelLog(pattern)

    def kernel_messages(self) -> list[tuple[float, str]]:
        if self._kernel_log is None:
            raise ValueError("the kernel's log is not watched")
        self._kernel_log.read()
        return self._kernel_log.kept

    # -- the end ---------------------------------------------------------------------------

    def end(self, why: str) -> None:
        """Begin to end the session, unless it ends already."""
        if self.over is None:
            self.over = why
            self._ending = self.jobs.add(self._give_back())

    @property
    def ended(self) -> bool:
        """Return whether all is ended and undone, as far as it can be."""
        return self._ending is not None and self._ending.answer is not None

    def outcome(self) -> dict[str, Any] | None:
        """Return what came of the undos, once the next session may begin."""
        return self._ending.answer if self._ending and self.given_back else None

    def _give_back(self) -> Work:
        """End all processes and run the undos. What could not be done is among the results of the
        undos; nothing waits for it."""
        undoing, record = self.undoing, self.undoing.record
        done = record["undone"]
        record["why"] = self.over
        undoing.undos.note()
        undoing.doing = "end processes"
        yield from self.processes.end()
        yield from undoing.sweep(record, lambda mark: mark == self.folder, 1.0)
        done.update(self.processes.reap())
        yield from undoing.undo_all(record)
        # The harness that asked is told, and later sessions need not be, unless something is left.
        record["told"] = self.over == ASKED and not any(status for status, _ in done.values())
        self.processes.remove_sockets()
        return {"undone": done}
