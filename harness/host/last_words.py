"""Ask a host's console whether its kernel died, or its firmware failed, when it does not answer."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence

from harness import kernel_log
from harness.errors import BreakdownError, LabError
from harness.host.connection import LinkLostError
from harness.host.host import HostConsole
from harness.host.link import UnreachableError
from harness.waiting import wait_for

#: How many lines of a console are shown, and how many of them before the one that says that the
#: kernel dies.
CONSOLE_LINES = 60
CONTEXT_LINES = 5
#: How many lines are shown of a host that has not said what is wrong.
LATEST_LINES = 15
#: What is wrong with a host that does not answer.
_SILENT = (LinkLostError, UnreachableError)
#: How long a host that does not answer may talk before its words are judged.
LONGEST_WORDS_SECONDS = 10.0
#: What a host's firmware prints when it fails: Trusted Firmware-A (at EL3), and EDK2 (UEFI).
FIRMWARE_CRASH = "|".join(
    (
        "Unhandled Exception in EL3",
        "PANIC in EL3",
        "PANIC at PC : 0x",
        "Unexpected BL31 exception",
        "^ASSERT: [^ ]+:[0-9]+",
        r"^ASSERT(_EFI_ERROR)? \[",
        "Synchronous Exception at 0x",
        "SError Exception at 0x",
    )
)
#: What a host prints first when it boots, after a reset of any kind.
BOOT = "|".join(
    (
        r"^NOTICE:  BL(1|2|31): v",
        r"UEFI firmware \(version",
        "EFI stub: Booting Linux",
        "Booting Linux on physical CPU",
    )
)


class HostKernelError(BreakdownError):
    """The host's kernel reported a bug, or died."""


class HostFirmwareError(LabError):
    """The host's firmware failed. It is no part of the product."""


class HostResetError(LabError):
    """The host was reset, and neither its kernel nor its firmware said why."""


class LastWords:
    """What a host has printed since it was last known to be well."""

    def __init__(self, host: str, console: HostConsole | None) -> None:
        self.host, self.console = host, console
        self._seen = 0

    def seen(self) -> None:
        """Note that the host is well: what it has printed so far is none of its last words."""
        self._seen = len(self.console.text()) if self.console else 0

    def latest(self) -> str:
        """Return the last lines of what the host has printed since; nothing if it has not."""
        if self.console is None:
            return ""
        return _listed(self.console.text()[self._seen :].splitlines()[-LATEST_LINES:])

    def check(
        self,
        problem: BaseException | None,
        expected: Callable[[str], bool] = lambda _: False,
        *,
        silence: BaseException | None = None,
    ) -> None:
        """Raise HostKernelError from `problem` if the host has printed since that its kernel dies,
        on a line that is not `expected`.

        If the problem is that the host is silent, or if there is none, raise HostFirmwareError if
        its firmware has failed; in the former case HostResetError if it boots. Whatever else is
        wrong tells more. `silence` is the host's, where that is not the problem itself. A host
        whose console nobody records has no last words.
        """
        if self.console is None:
            return
        if isinstance(silence or problem, _SILENT):
            _await_quiet(self.console, self.host)
        said = self.console.text()
        # It is shorter after a boot.
        said = self.console.last_boot() + said if len(said) < self._seen else said
        lines = said[self._seen :].splitlines()
        died = _first(kernel_log.CRASH, lines, expected)
        if died is not None:
            raise HostKernelError(
                f"the kernel of host {self.host} died: {_shown(lines, died)}"
            ) from problem
        silent = isinstance(problem, _SILENT)
        failed = _first(FIRMWARE_CRASH, lines, expected)
        if failed is not None and (silent or problem is None):
            raise HostFirmwareError(
                f"the firmware of host {self.host} failed: {_shown(lines, failed)}"
            ) from problem
        booted = _first(BOOT, lines, expected)
        if booted is not None and silent:
            raise HostResetError(
                f"host {self.host} was reset, and did not say why: {_shown(lines, booted)}",
                fix="look at the log of its BMC: a watchdog, its power, or a person resets a host",
            ) from problem


def _await_quiet(console: HostConsole, host: str) -> None:
    """Wait until nothing has come for as long as something may be under way. The link to a host
    that dies may be lost before what it dies of has come."""
    if not console.lag:
        return
    length, since = -1, 0.0

    def quiet() -> bool:
        nonlocal length, since
        now, found = time.monotonic(), len(console.text())
        if found != length:
            length, since = found, now
        return now - since >= console.lag

    # One that talks on and on has told enough.
    with contextlib.suppress(LabError):
        wait_for(f"the console of host {host} to be quiet", quiet, deadline=LONGEST_WORDS_SECONDS)


def _first(pattern: str, lines: Sequence[str], expected: Callable[[str], bool]) -> int | None:
    """Return the number of the first line with a pattern that is not expected."""
    for number, line in enumerate(lines):
        if re.search(pattern, line) and not expected(line):
            return number
    return None


def _shown(lines: Sequence[str], number: int) -> str:
    """Return a line, and what is on the console around it."""
    shown = lines[max(0, number - CONTEXT_LINES) : number + CONSOLE_LINES]
    return f"{lines[number].strip()}\non its console:\n{_listed(shown)}"


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"  | {one}" for one in lines)
