"""The lab's hosts during a run: one open at a time, and what becomes of one that is lost.

A host that stops answering is closed, and opened anew when it is asked for again: a virtual one
boots, another is connected to. One that is lost again, or does not open twice, is given up for the
rest of the run: what needs it is not run, and nobody waits for it any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.artifacts.store import Store
from harness.errors import LabError
from harness.guest.fleet import Fleet
from harness.host.host import Host, HostDescription, software
from harness.lab.inventory import Inventory
from harness.lab.provide import provided
from harness.lab.reservation import reserved
from harness.progress import Progress

#: Losses and failures to open after which a host is given up.
MOST_FAILURES = 2


class HostGivenUpError(LabError):
    """The host is given up for the rest of this run: it was lost, or did not open, too often."""


@dataclass(frozen=True)
class Software:
    """What to test in place of a host's own: see harness.host.host.software."""

    qemu: str | None = None
    guest_kernel: str | None = None


@dataclass
class _Reserved:
    """The host that is reserved, and open if it was asked for."""

    name: str
    description: HostDescription
    stack: contextlib.ExitStack
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

    def describe(self, name: str) -> HostDescription:
        """Have a host reserved and reachable: a virtual one is up from here on. Whichever was
        before is closed. Raises LabError, HostGivenUpError."""
        return self._reach(name).description

    def open(self, name: str) -> tuple[Host, Fleet]:
        """Have a host open: connected, checked, its capabilities known. Raises LabError,
        HostGivenUpError."""
        current = self._reach(name)
        if current.host is None:
            try:
                described, uploads = software(
                    current.description, self.software.qemu, self.software.guest_kernel
                )
                host = current.stack.enter_context(Host.open(described, uploads))
            except LabError as problem:
                self._failed(problem)
                raise
            current.host, current.fleet = host, Fleet(host, self.progress)
        assert current.fleet
        return current.host, current.fleet

    def check(self) -> None:
        """See whether the open host answers, after something that may be its fault; if it does not
        it is lost."""
        if self._current and self._current.host:
            try:
                self._current.host.connection.run("true", timeout=10)
            except LabError as problem:
                self._failed(problem)

    def close(self) -> None:
        """Give back what there is."""
        current, self._current = self._current, None
        if current is None:
            return
        # Whatever becomes of the last look at it: interrupted, or a disk that is full.
        with current.stack:
            if current.host:
                with contextlib.suppress(LabError):
                    self.closing(current.host)

    def _reach(self, name: str) -> _Reserved:
        if self._current and self._current.name == name:
            return self._current
        failures = self._failures.get(name, [])
        if len(failures) >= MOST_FAILURES:
            raise HostGivenUpError(
                f"host {name} is given up: {'; then: '.join(failures)}",
                fix="mend the host; what needs it was not run",
            )
        self.close()
        entry = self.lab.host(name)
        with contextlib.ExitStack() as stack:
            stack.enter_context(reserved(name, self.store.root, self.progress))
            try:
                described = stack.enter_context(provided(entry, self.store, self.progress))
            except LabError as problem:
                self._failures.setdefault(name, []).append(problem.message)
                raise
            self._current = _Reserved(name, described, stack.pop_all())
        return self._current

    def _failed(self, problem: LabError) -> None:
        assert self._current
        self._failures.setdefault(self._current.name, []).append(problem.message)
        # Cleaning up on a lost host fails too.
        with contextlib.suppress(LabError):
            self.close()
