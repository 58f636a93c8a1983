"""Run a tool that ends with the process that started it, also when that is killed.

    python3 -I -S leash.py OWNER COMMAND …

OWNER is a descriptor of that process: pidfd_open(2). When it has ended, this program, which leads a
session, kills that session, in which the tool is with all that it started; a make that went on
alone would work in the same folder as the next build. The exit status is the tool's, or 128 and the
signal's number.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def end_session(leader: int) -> None:
    """Kill all processes of a session but this one, and wait for their ends. Not only the leader's
    group: ninja has each command of a build in a group of its own."""
    while found := [process for process in _of_session(leader) if process != os.getpid()]:
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                _kill(process)


def _kill(process: int) -> None:
    descriptor = os.pidfd_open(process)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        # It may hang in the kernel for now, and the others should not wait for that.
        select.select([descriptor], [], [], 1.0)
    finally:
        os.close(descriptor)


def _of_session(leader: int) -> Iterator[int]:
    """Yield the processes of a session that run."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # After the name, which may have anything: state, parent, group, session (proc(5)).
            told = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if told[3] == str(leader) and told[0] not in "ZX":
                yield int(process.name)


def main() -> int:
    owner = int(sys.argv[1])
    with subprocess.Popen(sys.argv[2:]) as tool:
        ended = os.pidfd_open(tool.pid)
        poll = select.poll()
        poll.register(owner, select.POLLIN)
        poll.register(ended, select.POLLIN)
        if ended not in (descriptor for descriptor, _ in poll.poll()):
            end_session(os.getpid())
        status = tool.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
