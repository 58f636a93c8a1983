"""Bring back a host that does not answer: connect again, wait, interrupt it for a dump, restart it.

Each step is told with its time. The steps from the interrupt on are for a run that has had the
host: another one may have it, and only the way to it may be broken.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.console.recording import Recording
from harness.console.stamps import stamp
from harness.errors import LabError
from harness.host.connection import CommandFailedError, Connection, LinkLostError
from harness.host.host import HostDescription
from harness.host.link import UnreachableError
from harness.host.power import HostPower, PowerState
from harness.lab.inventory import RecoveryEntry
from harness.progress import Progress
from harness.waiting import wait_for

#: How long a host whose power can be controlled is waited for before anything is done to it.
WAIT_SECONDS = 60
#: How long a host that accepts a connection may take to run a command.
_ANSWER_SECONDS = 15.0
_ASK_SECONDS = 2.0
#: How an operation fails on a host that does not answer, or does nothing.
_SILENT = (UnreachableError, LinkLostError, CommandFailedError)


class HostLostError(LabError):
    """The host does not answer, and all that may be done for it was done."""


@dataclass(frozen=True)
class RecoveryLog:
    """Where the steps are told: to the person who watches, in a file of the run if there is one,
    and on the recorded console between what the host printed meanwhile."""

    host: str
    progress: Progress
    path: Path | None = None
    recording: Recording | None = None

    def tell(self, what: str) -> None:
        """Tell a step. A disk that is full does not stop it."""
        self.progress.note(f"host {self.host}: {what}")
        with contextlib.suppress(OSError):
            if self.path:
                with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"{stamp(time.time())}{' '.join(what.split())}\n")
            if self.recording:
                self.recording.note(what)


def worth_a_try(described: HostDescription, patience: RecoveryEntry) -> bool:
    """Return whether more can be done for a host that does not answer than to connect again."""
    return described.power is not None or bool(patience.wait)


def recover(
    described: HostDescription, patience: RecoveryEntry, log: RecoveryLog, *, ours: bool
) -> None:
    """Return once a host answers. Interrupt and restart it only if it is `ours`: this run has had
    it. One that is off is turned on in any case. Raises HostLostError, and LabError if it must not
    be used, or does not let us in."""
    _Ladder(described, patience, log).climb(ours=ours)


@dataclass
class _Ladder:
    described: HostDescription
    patience: RecoveryEntry
    log: RecoveryLog
    #: Why the host did not answer when it was last asked.
    seen: str = ""

    def climb(self, *, ours: bool) -> None:
        power, patience, tell = self.described.power, self.patience, self.log.tell
        try:
            self._ask()
        except _SILENT as problem:
            tell(f"does not answer: {problem.message}")
        else:
            return
        if power and self._is_off(power):
            if self._done("turn it on", power.on) and self._waited(patience.reboot):
                return
            raise self._lost("was off, and does not answer since it was turned on")
        wait = patience.wait
        if wait is None:
            wait = WAIT_SECONDS if power and ours else 0
        if wait and self._waited(wait):
            return
        if power is None or not ours:
            raise self._lost("does not answer")
        if patience.nmi and self._done("send it an NMI", power.nmi):
            tell("has got an NMI, and may write a dump now")
            if self._waited(patience.dump):
                return
        if patience.restart and self._done("restart it", power.cycle):
            tell("is restarted by its power control")
            if self._waited(patience.reboot):
                return
        raise self._lost("does not answer, although all was done that the inventory allows")

    def _ask(self) -> None:
        """Have the host run a command. Raises LabError; one of _SILENT if it does not answer."""
        try:
            with Connection.to(self.described.target) as link:
                link.run("true", timeout=_ANSWER_SECONDS)
        except LabError as problem:
            self.seen = problem.message
            raise

    def _is_off(self, power: HostPower) -> bool:
        try:
            state = power.state()
        except LabError as problem:
            self.log.tell(f"may be on or off: {problem.message}")
            return False
        self.log.tell(f"is {state}, says its power control")
        return state is PowerState.OFF

    def _done(self, what: str, act: Callable[[], None]) -> bool:
        """Do something by the power control; return whether it did."""
        self.log.tell(f"is not well: {what}")
        try:
            act()
        except LabError as problem:
            self.log.tell(f"could not {what}: {problem.message}")
            return False
        return True

    def _waited(self, seconds: float) -> bool:
        """Return whether the host answers within so many seconds."""
        what = f"host {self.described.name} to answer"
        started = time.monotonic()
        with self.log.progress.waiting(f"wait for {what}", seconds) as report:

            def answered() -> bool:
                report(min(1.0, (time.monotonic() - started) / max(seconds, 1.0)))
                try:
                    self._ask()
                # While it boots it may refuse us, too.
                except LabError:
                    return False
                return True

            try:
                wait_for(what, answered, deadline=seconds, interval=_ASK_SECONDS)
            except LabError:
                self.log.tell(f"did not answer within {seconds:.0f} s: {self.seen}")
                return False
        self.log.tell(f"answers, after {time.monotonic() - started:.0f} s")
        return True

    def _lost(self, how: str) -> HostLostError:
        name = self.described.name
        self.log.tell("is out")
        return HostLostError(
            f"host {name} {how}: {self.seen}",
            fix=f"look at its console; `hil lab power cycle {name}` restarts it"
            if self.described.power
            else "look at its console, and restart it by hand",
        )
