"""Watch what a test runs on: a QEMU that dies, and a kernel that reports a bug, is the product's
failure of the test, whatever the test itself noticed.

The host's agent keeps the reports of the host's kernel (harness/host/agent/kernel_log.py), so that
a look costs one request. In a guest a look costs one command.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from harness import kernel_log
from harness.errors import BreakdownError, HilError, LabError
from harness.guest.console import GuestCrashedError
from harness.guest.death import death
from harness.guest.guest import Guest
from harness.host.host import Host
from harness.host.last_words import HostKernelError, LastWords
from harness.host.session import ENDING_SECONDS

#: How many lines of a kernel's log are shown for each report, from its first line on.
REPORT_LINES = 40
#: The longest that a guest is waited for whose kernel log is looked at, in seconds.
LOOK_SECONDS = 5.0


class GuestKernelError(BreakdownError):
    """A guest's kernel reported a bug."""


class Watch:
    """The watch over one host and the guests on it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._last_words = LastWords(host.name, host.console)
        # The host's own boot, for one, is none of them.
        self._last_words.seen()
        self._expected: tuple[re.Pattern[str], ...] = ()
        #: The reports of each guest's kernel that were seen.
        self._seen: set[tuple[str, str]] = set()

    def forget(self) -> None:
        """Forget what guests' kernels have reported: other guests run from now on."""
        self._seen.clear()

    @contextlib.contextmanager
    def expecting(self, patterns: Iterable[str]) -> Iterator[None]:
        """Let kernels report, inside the context, what one of these regular expressions is found
        in: the first line of a report, or all that is shown of a kernel that died."""
        before, self._expected = self._expected, tuple(map(re.compile, patterns))
        try:
            yield
        finally:
            self._expected = before

    def check(self, guests: Sequence[Guest], problem: BaseException | None = None) -> None:
        """Raise what broke down since the last check, if anything did. `problem` is what the test
        raised by then.

        Raises HostKernelError, QemuDiedError or GuestKernelError; OutOfMemoryError or
        BoundaryDiedError where it was not QEMU's own death.
        """
        try:
            reports = [
                one for one in self.host.session.kernel_reports() if self._is_unexpected(one[1])
            ]
            states = self.host.session.processes()
        except LabError as silence:
            self._last_words.check(
                problem, lambda line: not self._is_unexpected(line), silence=silence
            )
            return
        self._last_words.seen()
        if reports:
            raise HostKernelError(
                f"the kernel of host {self.host.name} reported a bug: {reports[0][1]}\n"
                f"{self._log(reports[0][0])}"
            ) from problem
        for guest in guests:
            status = states.get(guest.name)
            if status is None and not self._answers(guest, problem):
                # A QEMU that dies has closed its sockets before it has left its core.
                status = self.host.session.wait(guest.name, ENDING_SECONDS)
            if status is None or guest.name in self.host.session.ended:
                continue
            # A test may have its guest power itself off. Where that makes the test fail, nobody
            # had asked for it.
            if status != 0 or problem is not None:
                raise death(self.host.session, guest.identity, status) from problem

    def _is_unexpected(self, line: str) -> bool:
        return not any(pattern.search(line) for pattern in self._expected)

    # -- the host's kernel -------------------------------------------------------------------

    def _log(self, since: float) -> str:
        """Return the kernel's log from a report on, as far as it can be had."""
        try:
            # The report's own line, too: dmesg rounds no further than a microsecond.
            said = self.host.kernel_log(since - 2e-6)
        except HilError as problem:
            return f"  the log cannot be read: {problem.message}"
        return _indented(said.splitlines()[:REPORT_LINES])

    # -- the guests' kernels -----------------------------------------------------------------

    def _answers(self, guest: Guest, problem: BaseException | None) -> bool:
        """Return whether the guest's console is open, and raise GuestKernelError if the guest's
        kernel has reported a bug or died. A guest that is silent says nothing."""
        # The guest's console shows no warnings: it would be flooded with events.
        search = f"dmesg | grep -E -A{REPORT_LINES} {shlex.quote(kernel_log.BUG)}"
        try:
            said = guest.run(search, timeout=LOOK_SECONDS, check=False).text
        except GuestCrashedError as crash:
            if isinstance(problem, GuestCrashedError) or not self._is_unexpected(crash.message):
                return True
            raise GuestKernelError(
                f"the kernel of guest {guest.name} died:\n{crash.message}"
            ) from problem
        except HilError:
            return not guest.console.is_closed()
        lines = said.splitlines()
        for number, line in enumerate(lines):
            if not re.search(kernel_log.BUG, line) or (guest.name, line) in self._seen:
                continue
            self._seen.add((guest.name, line))
            if self._is_unexpected(line):
                raise GuestKernelError(
                    f"the kernel of guest {guest.name} reported a bug: {line}\n"
                    f"{_indented(lines[number : number + REPORT_LINES])}"
                ) from problem
        return True


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"  | {line}" for line in lines)
