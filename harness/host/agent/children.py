"""Calls that run in children of the agent, so that none of them can stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Generator
from typing import Any

from harness.host.agent.jobs import until

#: How long a call that cannot be started, for want of memory or processes, is tried again.
START_SECONDS = 5.0
#: The most of a call's output that is kept, in bytes.
OUTPUT_BYTES = 1 << 13
NOT_DONE, NOT_STARTED = 124, 126  # the exit statuses of timeout(1) and of a shell for these
STUCK = "does not end when it is killed: it is stuck in the kernel"

#: An exit status and an output.
Result = list[Any]


def status_of(pid: int) -> int | None:
    """Return the exit status of a child, negative for a signal; None while it runs. The child is
    not reaped: until it is, neither its number nor that of its process group is given to another
    process."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the process group of a child that is not reaped."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def run(call: Callable[[], object], seconds: float) -> Generator[None, None, Result]:
    """Run a call in a child; return the child's exit status and output. The status is NOT_DONE
    for one that was not done within so many seconds, and NOT_STARTED for one that could not be
    started."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.ExitStack() as stack:
            try:
                output = os.memfd_create("output")
                stack.callback(os.close, output)
                pid = _start(call, output)
            except OSError as problem:
                if time.monotonic() > deadline:
                    return [NOT_STARTED, f"could not be started: {problem}"]
            else:
                return (yield from _watch(pid, output, seconds))
        yield


def _watch(pid: int, output: int, seconds: float) -> Generator[None, None, Result]:
    yield from until(lambda: status_of(pid) is not None, seconds)
    status, said = status_of(pid), ""
    if status is None:
        said = f"not done within {seconds:.0f} s"
        signal_group(pid, signal.SIGKILL)
        yield from until(lambda: status_of(pid) is not None, 1.0)
        status = NOT_DONE
        if status_of(pid) is None:
            said += f", and process {pid} {STUCK}"
    said += os.pread(output, OUTPUT_BYTES, 0).decode(errors="replace")
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return [status, said]


def _start(run: Callable[[], object], output: int) -> int:
    """Run `run` in a child with a process group of its own, with no descriptors but `output` as its
    outputs, and return its pid. Raises OSError."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, 1 << 10)  # above all the lock: it must not outlive the agent
        run()
        os._exit(0)
    except BaseException as problem:
        os.write(2, f"{problem!r}\n".encode())
    finally:
        os._exit(NOT_STARTED)
