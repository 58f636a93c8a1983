"""The lab's hosts during a run. One is open at a time; one that is lost is opened again.

A host that stops answering is closed, and opened again when it is asked for again: a virtual host
boots, any other is connected to. A host that is lost twice, or twice does not open, is given up for
the rest of the run: the tests that need it are not run, and nothing waits for it.

A host that another run has is waited for, and that is no failure of the host. One that the other
run does not release in time is given up as well: each test would wait as long again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.artifacts.store import Store
from harness.errors import HilError, LabError
from harness.guest.fleet import Fleet
from harness.host.host import Host, HostDescription
from harness.host.last_words import HostKernelError, LastWords
from harness.host.session import ReservedError
from harness.lab.inventory import Inventory
from harness.lab.kexec import with_kernel
from harness.lab.provide import provided
from harness.lab.reservation import opened, reserved
from harness.lab.software import Software
from harness.progress import Progress

#: Losses and failures to open after which a host is given up.
MOST_FAILURES = 2


class HostGivenUpError(LabError):
    """The host is given up for the rest of this run: too often it was lost or did not open, or
    another run did not release it."""


@dataclass
class _Reserved:
    """The reserved host; `host` and `fleet` are None until it is opened."""

    name: str
    description: HostDescription
    stack: contextlib.ExitStack
    last_words: LastWords
    host: Host | None = None
    fleet: Fleet | None = None


@dataclass
class Hosts:
    """All hosts of an inventory. `closing` is called with each host before it is closed."""

    lab: Inventory
    software: Software
    store: Store
    progress: Progress
    closing: Callable[[Host], None] = lambda _: None
    _current: _Reserved | None = None
    _failures: dict[str, list[str]] = field(default_factory=dict)
    _busy: dict[str, str] = field(default_factory=dict)

    def describe(self, name: str) -> HostDescription:
        """Reserve a host and return its description: it can be reached, and a virtual host is up,
        from here on. Another host that was reserved is closed. Raises LabError, or HostGivenUpError
        for a host that is given up."""
        return self._reach(name).description

    def open(self, name: str) -> tuple[Host, Fleet]:
        """Open a host and return it with its fleet: it is connected and checked, and its
        capabilities are known. A host that is open is returned as it is. Raises LabError, or
        HostGivenUpError for a host that is given up."""
        current = self._reach(name)
        if current.host is None:
            try:
                described, uploads = self.software.applied(
                    current.stack.enter_context(
                        with_kernel(current.description, self.software, self.progress)
                    )
                )
                host = current.stack.enter_context(opened(described, uploads, self.progress))
            except ReservedError as busy:
                self._busy[name] = busy.message
                self.close()
                raise
            except HostKernelError as problem:
                self._failed(problem)
                raise
            except LabError as problem:
                self._failed(problem)
                current.last_words.check(problem)
                raise
            adapt = self.lab.host(name).adapt
            current.host, current.fleet = host, Fleet(host, self.progress, adapt)
        assert current.fleet
        return current.host, current.fleet

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
        current, self._current = self._current, None
        if current is None:
            return
        try:
            # Give the host back even when `closing` fails: it may be interrupted, or the disk full.
            with current.stack:
                if current.host:
                    with contextlib.suppress(LabError):
                        self.closing(current.host)
        except LabError as problem:
            current.last_words.check(problem)
            raise

    def _reach(self, name: str) -> _Reserved:
        if self._current and self._current.name == name:
            return self._current
        failures = self._failures.get(name, [])
        if len(failures) >= MOST_FAILURES:
            raise HostGivenUpError(
                f"host {name} is given up: {'; then: '.join(failures)}",
                fix="repair the host and run the tests that need it again: they were not run",
            )
        if name in self._busy:
            raise HostGivenUpError(
                f"host {name} is given up: {self._busy[name]}",
                fix="run the tests that need it again when it is free: they were not run",
            )
        self.close()
        entry = self.lab.host(name)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(reserved(entry, self.store.root, self.progress))
                self.software.check(entry)
                described = stack.enter_context(
                    provided(entry, self.store, self.progress, self.software.host_image)
                )
            except ReservedError as busy:
                self._busy[name] = busy.message
                raise
            except (LabError, HostKernelError) as problem:
                self._failures.setdefault(name, []).append(problem.message)
                raise
            last_words = LastWords(name, described.console)
            last_words.seen()
            self._current = _Reserved(name, described, stack.pop_all(), last_words)
        return self._current

    def _failed(self, problem: HilError) -> None:
        assert self._current
        self._failures.setdefault(self._current.name, []).append(problem.message)
        # Cleaning up on a lost host fails too. Whoever lost it tells why.
        with contextlib.suppress(LabError, HostKernelError):
            self.close()
