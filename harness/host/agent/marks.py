"""The mark of a session's processes, which they have whatever their parent and their process group
are: all of them are found by it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

from harness.host.agent.children import NOT_DONE, STUCK

#: The environment variable that has the folder of the session that a process belongs to.
MARK = "HIL_SESSION"


def environment(folder: str) -> dict[str, str]:
    """Return the environment of a process of the session that has this folder."""
    return {**os.environ, MARK: folder}


def marked(belongs: Callable[[str], bool]) -> Iterator[tuple[int, int]]:
    """Yield pid and pidfd of each process whose mark is one that `belongs`. The pidfd was opened
    before the mark was read: it never means a later process of the same number."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            pidfd = os.pidfd_open(int(name))
        except OSError:
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            words = []
        prefix = f"{MARK}=".encode()
        folders = [os.fsdecode(word[len(prefix) :]) for word in words if word.startswith(prefix)]
        if folders and belongs(folders[0]):
            yield int(name), pidfd
        os.close(pidfd)


def sweep(belongs: Callable[[str], bool], seconds: float) -> None:
    """Kill all processes whose mark is one that `belongs`. Exit with what remains of them after so
    many seconds. This may hang, because it looks into processes that may be stuck in the kernel:
    run it in a child."""
    until = time.monotonic() + seconds
    while True:
        left = []
        for pid, pidfd in marked(belongs):
            left.append(pid)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not left:
            return
        if time.monotonic() > until:
            print(*(f"process {pid} {STUCK}" for pid in left), sep="; ", flush=True)
            os._exit(NOT_DONE)
        time.sleep(0.05)
