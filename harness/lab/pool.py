"""The lab's hosts during a run. One is open at a time; one that is lost is opened again.

Whoever asks names all hosts that will do, the best first. The host that is open is used if it is
one of them, else the best that no other run and no other worker of this run has; if all are in use,
the first that is given back.

A host that stops answering is closed, and opened again when it is asked for again: a virtual host
boots, any other is brought back as far as the inventory allows (harness/lab/recovery.py). A host
that is lost twice, or twice does not open, is given up for the rest of the run: the tests that need
it are not run, and nothing waits for it.

What a host prints on its console is recorded while it is reserved, into a file of the run.

A host that another run has is waited for if no other will do, and that is no failure of the host.
One that the other run does not release in time is given up as well: each test would wait as long
again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.artifacts.store import Store
from harness.console.recording import Recording
from harness.errors import HilError, LabError
from harness.guest.fleet import Fleet
from harness.host.host import Host, HostDescription
from harness.host.last_words import HostKernelError, LastWords
from harness.host.session import ReservedError
from harness.lab.inventory import HostEntry, Inventory
from harness.lab.kexec import with_kernel
from harness.lab.provide import console, provided
from harness.lab.recovery import RecoveryLog, recover, worth_a_try
from harness.lab.reservation import ASK_HERE, WAIT_SECONDS, opened, reserved, waited
from harness.lab.software import Software
from harness.progress import Progress

#: Losses and failures to open after which a host is given up.
MOST_FAILURES = 2


class HostGivenUpError(LabError):
    """The host is given up for the rest of this run: too often it was lost or did not open, or
    another run did not release it."""


@dataclass
class _Reserved:
    """The reserved host; `host` and `fleet` are None until it is opened. `software` is what it was
    given last."""

    name: str
    description: HostDescription
    stack: contextlib.ExitStack
    last_words: LastWords
    software: Software
    host: Host | None = None
    fleet: Fleet | None = None


@dataclass
class Hosts:
    """All hosts of an inventory. `closing` is called with each host before it is closed. `logs` is
    the folder for what hosts print; without it, that is not recorded. `noted` is called with what
    could not be had for the run, and why."""

    lab: Inventory
    software: Software
    store: Store
    progress: Progress
    closing: Callable[[Host], None] = lambda _: None
    logs: Path | None = None
    noted: Callable[[str, str], None] = lambda what, why: None
    #: Whether later runs may go on from snapshots of this one.
    lasting: bool = False
    _current: _Reserved | None = None
    _failures: dict[str, list[str]] = field(default_factory=dict)
    _busy: dict[str, str] = field(default_factory=dict)
    #: The hosts that this run has had and not given back, and the one that was asked for last.
    _had: set[str] = field(default_factory=set)
    _last: str = ""

    def likely(self, *names: str) -> str:
        """Return which of these hosts will be used, as far as that is known without waiting.
        Nothing is reserved."""
        if self._current and self._current.name in names:
            return self._current.name
        return next(iter(self._usable(names)), names[0])

    def last(self, *names: str) -> str:
        """Return which of these hosts was used last, or was to be; the first if none was."""
        return self._last if self._last in names else names[0]

    def describe(self, *names: str) -> HostDescription:
        """Reserve one of these hosts and return its description: it can be reached, and a virtual
        host is up, from here on. Another host that was reserved is closed. Raises LabError, or
        HostGivenUpError if all are given up."""
        return self._reach(names).description

    def open(self, *names: str) -> tuple[Host, Fleet]:
        """Open one of these hosts and return it with its fleet: it is connected and checked, and
        its capabilities are known. A host that is open is returned as it is. Raises LabError, or
        HostGivenUpError if all are given up."""
        current = self._reach(names)
        name = current.name
        if current.host and current.software is not self.software:
            self._hand_over(current, current.host)
        if current.host is None:
            others = [one for one in self._usable(names) if one != name]
            try:
                described, uploads = self.software.applied(
                    current.stack.enter_context(
                        with_kernel(current.description, self.software, self.progress)
                    )
                )
                wait = 0.0 if others else WAIT_SECONDS
                host = current.stack.enter_context(
                    opened(described, uploads, self.progress, wait=wait)
                )
            except ReservedError as busy:
                self.close()
                if others:  # The lock here was free: somebody of another machine has it.
                    return self.open(*others)
                self._busy[name] = busy.message
                raise
            except HostKernelError as problem:
                self._failed(problem)
                raise
            except LabError as problem:
                self._failed(problem)
                current.last_words.check(problem)
                raise
            adapt = self.lab.host(name).adapt
            current.host = host
            current.fleet = Fleet(host, self.progress, adapt, lasting=self.lasting)
            current.software = self.software
            self._had.add(name)
        assert current.fleet
        return current.host, current.fleet

    def renew(self, software: Software) -> None:
        """Test other software from now on. A host that is open stays open, unless its own kernel is
        another one: it is given the new files when it is asked for next."""
        if software.host_kernel != self.software.host_kernel:
            self.close()
        self.software = software

    def _hand_over(self, current: _Reserved, host: Host) -> None:
        """Give the open host the software of now. Raises LabError: what does not run is no fault of
        the host, and the next software is tried there again."""
        _, uploads = self.software.applied(current.description)
        host.take(uploads)
        current.software = self.software

    @property
    def fleet(self) -> Fleet | None:
        """Return the fleet of the host that is open, if there is one."""
        return self._current.fleet if self._current else None

    def check(self) -> None:
        """Check that the open host and the session on it still answer, after a failure that may be
        theirs. A host of which one does not is lost: it is closed."""
        if self._current and self._current.host:
            try:
                self._current.host.session.processes()
            except LabError as problem:
                self._failed(problem)

    def close(self) -> None:
        """Close the host that is open or reserved, if there is one."""
        if self._current:
            name = self._current.name
            self._close(self._current)
            self._had.discard(name)  # somebody else may have it by now

    def _close(self, current: _Reserved) -> None:
        """Close the current host, whether or not it can be given back."""
        self._current = None
        try:
            # Give the host back even when `closing` fails: it may be interrupted, or the disk full.
            with current.stack:
                if current.host:
                    with contextlib.suppress(LabError):
                        self.closing(current.host)
        except LabError as problem:
            current.last_words.check(problem)
            raise

    def _usable(self, names: Sequence[str]) -> list[str]:
        """Return those of these hosts that are not given up, first those that did not fail."""
        failures = {name: len(self._failures.get(name, ())) for name in names}
        usable = [one for one in names if failures[one] < MOST_FAILURES and one not in self._busy]
        return sorted(usable, key=failures.__getitem__)

    def _given_up(self, name: str) -> HostGivenUpError:
        failures = self._failures.get(name, [])
        if len(failures) >= MOST_FAILURES:
            return HostGivenUpError(
                f"host {name} is given up: {'; then: '.join(failures)}",
                fix="repair the host and run the tests that need it again: they were not run",
            )
        return HostGivenUpError(
            f"host {name} is given up: {self._busy[name]}",
            fix="run the tests that need it again when it is free: they were not run",
        )

    def _reach(self, names: Sequence[str]) -> _Reserved:
        if self._current and self._current.name in names:
            return self._current
        usable = self._usable(names)
        self._last = next(iter(usable), names[0])
        if not usable:
            raise self._given_up(names[0])
        # A worker that waits has no host, so that two never wait for each other.
        self.close()
        with contextlib.ExitStack() as stack:
            entry = self._reserve(usable, stack)
            name = self._last = entry.name
            try:
                self.software.check(entry)
                recording = self._record(entry, stack)
                described = stack.enter_context(
                    provided(entry, self.store, self.progress, self.software.host_image)
                )
                if recording:
                    described = replace(described, console=recording)
                self._revive(entry, described, recording)
            except (LabError, HostKernelError) as problem:
                self._failures.setdefault(name, []).append(problem.message)
                raise
            last_words = LastWords(name, described.console)
            last_words.seen()
            self._current = _Reserved(
                *(name, described, stack.pop_all(), last_words, self.software)
            )
        return self._current

    def _reserve(self, names: Sequence[str], stack: contextlib.ExitStack) -> HostEntry:
        """Reserve the first of these hosts that is free, or becomes free, until `stack` ends.
        Return its entry. Raises ReservedError."""
        taken: list[HostEntry] = []

        def take() -> None:
            said: list[ReservedError] = []
            for name in names:
                entry = self.lab.host(name)
                try:
                    stack.enter_context(reserved(entry, self.store.root, self.progress, wait=0))
                except ReservedError as busy:
                    said.append(busy)
                    continue
                except LabError as problem:
                    self._failures.setdefault(name, []).append(problem.message)
                    raise
                taken.append(entry)
                return
            raise said[0]

        try:
            waited(take, self.progress, interval=ASK_HERE)
        except ReservedError as busy:
            self._busy |= dict.fromkeys(names, busy.message)
            raise
        return taken[0]

    def _record(self, entry: HostEntry, stack: contextlib.ExitStack) -> Recording | None:
        """Record what a host prints, until `stack` ends. If that cannot be done, it is noted, and
        the run goes on."""
        source = console(entry, self.store, self.progress)
        if source is None or self.logs is None:
            return None

        what, path = f"console of host {entry.name}", self.logs / f"{entry.name}.console.txt"
        noted = self.noted
        try:
            recording = stack.enter_context(
                Recording.of(entry.name, source, path, lambda why: noted(what, why))
            )
        except OSError as problem:
            noted(what, f"{path} cannot be written: {problem.strerror}")
            return None
        for why in recording.problems:
            self.progress.note(f"{what}: not recorded: {why}")
        return recording

    def _revive(
        self, entry: HostEntry, described: HostDescription, recording: Recording | None
    ) -> None:
        """Have a host that may be lost, or off, answer, if more can be done for that than to
        connect. Raises LabError."""
        if worth_a_try(described, entry.recovery):
            path = self.logs / f"{entry.name}.recovery.txt" if self.logs else None
            log = RecoveryLog(entry.name, self.progress, path, recording)
            recover(described, entry.recovery, log, ours=entry.name in self._had)

    def _failed(self, problem: HilError) -> None:
        assert self._current
        self._failures.setdefault(self._current.name, []).append(problem.message)
        # Cleaning up on a lost host fails too. Whoever lost it tells why.
        with contextlib.suppress(LabError, HostKernelError):
            self._close(self._current)
