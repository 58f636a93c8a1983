"""Drive one guest by this project's console and by labgrid's ShellDriver, and compare: how long a
command takes, and how many answers are wrong while the guest's kernel prints messages.

The ShellDriver has the guest's console itself, by a socket, as our console has it; and an
interactive shell, as it needs one. A command that has not ended after some seconds counts as wrong.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.runner.figure import Benchmark, Figure, Samples
from benchmarks.runner.host import SILENT, own_host
from benchmarks.runner.program import alone
from harness.errors import HarnessError, LabError, ProductError
from harness.guest.console import Console
from harness.guest.description import GuestSpec
from harness.guest.fleet import Fleet, Freshness

OURS = Figure("peers-ours", "a command of a guest, by this project's console", "ms")
WRONG = Figure(
    "peers-ours-wrong", "wrong answers amid kernel messages", "of 60", limit=0, compared=False
)
THEIRS = Figure("peers-labgrid", "a command, by labgrid's ShellDriver", "ms", compared=False)
THEIR_WRONG = Figure(
    "peers-labgrid-wrong", "wrong answers to it amid kernel messages", "of 60", compared=False
)

_COMMANDS = 60
#: How long a command may take, in seconds, by either.
_PATIENCE = 5.0
_PROMPT = "guest# "
#: The shell that the ShellDriver needs: with a prompt, and on a tty that echoes, as login has it.
_INTERACTIVE = f"stty echo; PS1='{_PROMPT}' exec sh -i"
#: The kernel drops most of what is written to /dev/kmsg unless it is told not to, and shows on the
#: console what is urgent: <1> is KERN_ALERT.
_GUEST = GuestSpec(append="printk.devkmsg=on")
_STORM = "(while :; do echo '<1>storm' >/dev/kmsg; done) >/dev/null 2>&1 & echo $! >/tmp/storm"
_CALM = "kill $(cat /tmp/storm)"

#: Runs a command of a guest, and returns what it printed. It raises one of WRONG_ANSWERS if it
#: cannot tell.
Run = Callable[[str], str]


def measure(share: float) -> Samples:
    """Yield the figures of both, of one guest, without messages and amid them. Raises LabError if
    labgrid is not installed."""
    check_installed()
    count = max(5, int(_COMMANDS * share))
    with own_host() as host:
        fleet = Fleet(host, SILENT)
        for storm in (False, True):
            with fleet.guests([_GUEST], Freshness.COLD) as (guest,):
                if storm:
                    guest.run(_STORM)
                ours = answers(by_console(guest.console), count)
                if storm:
                    guest.run(_CALM)
                path = guest.paths.sockets["console"]
            # Our console is closed, and the guest runs on.
            with by_shell_driver(host.connection.unix_socket(path)) as run:
                # It finds its prompt before the storm begins.
                if storm:
                    answer(run, _STORM)
                theirs = answers(run, count)
            for figures, (seconds, wrong) in (
                ((OURS, WRONG), ours),
                ((THEIRS, THEIR_WRONG), theirs),
            ):
                if storm:
                    yield figures[1], wrong * _COMMANDS / count
                else:
                    yield figures[0], seconds * 1e3


def check_installed() -> None:
    """Raise LabError if labgrid is not installed."""
    try:
        import labgrid.driver  # noqa: F401
    except ImportError as problem:
        raise LabError(
            f"the comparison with labgrid needs the Python package labgrid ({problem})",
            fix="pip install 'grace-smmu-hil[labgrid]'",
        ) from None


def answers(run: Run, count: int) -> tuple[float, int]:
    """Run so many commands whose output is known. Return the seconds that one took, on average, and
    how many answers were wrong or did not come."""
    wrong, started = 0, time.monotonic()
    for number in range(count):
        expected = [str(number + line) for line in range(5)]
        wrong += answer(run, f"seq {expected[0]} {expected[-1]}") != expected
    return (time.monotonic() - started) / count, wrong


def answer(run: Run, command: str) -> list[str] | None:
    """Return the lines that a command printed, None if that cannot be told."""
    try:
        return run(command).splitlines()
    except wrong_answers():
        return None


def wrong_answers() -> tuple[type[BaseException], ...]:
    """Return what is raised for an answer that is damaged or does not come."""
    import pexpect

    # ValueError: what came is no text, or no number where the exit status is to be.
    return (ProductError, HarnessError, pexpect.TIMEOUT, ValueError)


def by_console(console: Console) -> Run:
    """Return how our console runs a command."""
    return lambda command: console.run(command, timeout=_PATIENCE).text


@contextlib.contextmanager
def by_shell_driver(sock: socket.socket) -> Iterator[Run]:
    """Yield how labgrid's ShellDriver runs a command, on a console of a shell that has no prompt
    yet. The socket is closed in the end."""
    with contextlib.closing(sock):
        sock.sendall(f"{_INTERACTIVE}\n".encode())
        target = shell_target(sock)
        shell = target.get_driver("ShellDriver")
        try:
            yield lambda command: "\n".join(shell.run(command, timeout=_PATIENCE)[0])
        finally:
            target.cleanup()


def shell_target(sock: socket.socket) -> Any:
    """Return a target of labgrid, with a ShellDriver on a socket."""
    import attr
    import pexpect
    from labgrid import Target
    from labgrid.driver import ShellDriver
    from labgrid.driver.common import Driver
    from labgrid.driver.consoleexpectmixin import ConsoleExpectMixin
    from labgrid.protocol import ConsoleProtocol

    @attr.s(eq=False)
    class SocketConsole(ConsoleExpectMixin, Driver, ConsoleProtocol):  # type: ignore[misc]
        """A console on a connected socket. Like labgrid's SerialDriver, it reads all there is."""

        txdelay, txchunk = 0.0, 1

        def _read(self, size: int = 1, timeout: float = 0.0, max_size: int | None = None) -> bytes:
            if not select.select([sock], [], [], timeout)[0]:
                raise pexpect.TIMEOUT(f"nothing came for {timeout:.1f} s")
            return sock.recv(max_size or 1 << 16)

        def _write(self, data: bytes) -> int:
            sock.sendall(data)
            return len(data)

        def expect(self, pattern: Any, timeout: float = -1) -> Any:
            # The ShellDriver looks for its prompt for 30 s.
            return super().expect(pattern, min(timeout, _PATIENCE) if timeout >= 0 else _PATIENCE)

    target = Target("guest")
    SocketConsole(target, "console")  # type: ignore[call-arg]  # attr.s makes its __init__
    # It looks for a prompt first, so that no login is tried.
    shell = ShellDriver(target, "shell", prompt=_PROMPT, login_prompt="no login: ", username="root")
    target.activate(shell)
    return target


BENCHMARK = Benchmark(
    (OURS, WRONG, THEIRS, THEIR_WRONG), measure, 120, rounds=1, lab=True, apart=True
)

if __name__ == "__main__":
    sys.exit(alone(__file__))
