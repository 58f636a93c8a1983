"""Ask a host's console whether its kernel died, when the host does not answer."""

from __future__ import annotations

import re
from collections.abc import Callable

from harness import kernel_log
from harness.errors import BreakdownError
from harness.host.host import HostConsole

#: How many lines of a console are shown, and how many of them before the one that says that the
#: kernel dies.
CONSOLE_LINES = 60
CONTEXT_LINES = 5


class HostKernelError(BreakdownError):
    """The host's kernel reported a bug, or died."""


class LastWords:
    """What a host has printed since it was last known to be well."""

    def __init__(self, host: str, console: HostConsole | None) -> None:
        self.host, self.console = host, console
        self._seen = 0

    def seen(self) -> None:
        """Note that the host is well: what it has printed so far is none of its last words."""
        self._seen = len(self.console.text()) if self.console else 0

    def check(
        self, problem: BaseException | None, expected: Callable[[str], bool] = lambda _: False
    ) -> None:
        """Raise HostKernelError from `problem` if the host has printed since that its kernel dies,
        on a line that is not `expected`. A host whose console nobody records has no last words."""
        if self.console is None:
            return
        said = self.console.text()
        # It is shorter after a boot.
        said = self.console.last_boot() + said if len(said) < self._seen else said
        lines = said[self._seen :].splitlines()
        for number, line in enumerate(lines):
            if re.search(kernel_log.CRASH, line) and not expected(line):
                shown = lines[max(0, number - CONTEXT_LINES) : number + CONSOLE_LINES]
                told = "\n".join(f"  | {one}" for one in shown)
                raise HostKernelError(
                    f"the kernel of host {self.host} died: {line.strip()}\non its console:\n{told}"
                ) from problem
