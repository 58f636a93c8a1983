"""The keeper of a virtual host: the process that starts the host's QEMU and ends it with its owner.

    python3 -I -S keeper.py FOLDER OWNER PROGRAMS

A run that is killed with SIGKILL ends nothing any more, so its host must notice it. OWNER is a
descriptor of the run's process: pidfd_open(2). It becomes readable when that process has ended with
all its threads, whichever of them started the host and whatever was forked since. (A parent-death
signal, prctl(2), comes with the end of a thread; a pipe stays open in forks.)

PROGRAMS is a JSON list of what to start (Program). The last one is QEMU: its pid is printed, and
when it ends, all end. So they do when the keeper gets SIGTERM. QEMU ends with the keeper, too:
-run-with exit-with-parent=on.

FOLDER/state.json (running.py) tells whether the host outlives its owner. This program has no
imports besides the standard library, and few, because it starts at every restore.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple


class Program(NamedTuple):
    """A program, the file to which it writes what it prints, and descriptors for it to inherit."""

    argv: list[str]
    log: str
    descriptors: list[int]


#: How often the keeper of a QEMU that has ended looks whether the host's record is gone, in ms.
_LOOK_MS = 1000


def main() -> None:
    folder, owner = sys.argv[1], int(sys.argv[2])
    programs = [Program(*one) for one in json.loads(sys.argv[3])]
    told, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGTERM, lambda *_: None)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for program in programs:
            started.append(_start(program))
        for descriptor in {number for one in programs for number in one.descriptors}:
            os.close(descriptor)
        print(started[-1].pid, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        orphaned = _wait(folder, owner, started, told)
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
    # Whoever sends SIGTERM from now on cleans up, and has the lock for it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if orphaned and not _readable({told}, 0):
        _clean(folder, started[-1].pid)


def _start(program: Program) -> subprocess.Popen[bytes]:
    with open(program.log, "ab") as log:
        return subprocess.Popen(
            program.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=program.descriptors,
        )


def _wait(folder: str, owner: int, started: list[subprocess.Popen[bytes]], told: int) -> bool:
    """Wait until everything is to end. Return whether the owner has ended, so that nobody else
    cleans up."""
    *others, qemu = (process.pid for process in started)
    ended = os.pidfd_open(qemu)
    watched = {owner, ended, told}
    while True:
        ready = _readable(watched)
        if told in ready:
            return False
        if ended in ready:
            break
        record = _record(folder, qemu)
        if record is None or record["owner"]:
            return True
        watched.remove(owner)  # the host is to stay up
    result = os.waitid(os.P_PID, qemu, os.WEXITED | os.WNOWAIT)
    how = "with status" if result and result.si_code == os.CLD_EXITED else "by signal"
    print(f"hil: QEMU ended {how} {result and result.si_status}", file=sys.stderr, flush=True)
    for other in others:
        os.kill(other, signal.SIGKILL)
    # The owner removes the record of a host that it finds dead, unless it is killed before.
    while owner in watched and _record(folder, qemu):
        ready = _readable({owner, told}, _LOOK_MS)
        if ready:
            return told not in ready
    return False


def _readable(descriptors: Iterable[int], milliseconds: int | None = None) -> set[int]:
    """Return those of the descriptors that are readable, as soon as one is; none when the time is
    over."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(milliseconds)}


def _record(folder: str, qemu: int) -> dict[str, Any] | None:
    """Return the host's record; None if there is none, or if it is of another QEMU."""
    try:
        with open(f"{folder}/state.json") as file:
            record: dict[str, Any] = json.load(file)
        return record if record["process"]["pid"] == qemu else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _clean(folder: str, qemu: int) -> None:
    """Remove what the host left, as whoever brought it up would have done, unless it has been
    brought up again meanwhile."""
    with open(f"{folder}/lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _record(folder, qemu) or not os.path.exists(f"{folder}/state.json"):
            sweep(folder)


def belongings(folder: str) -> list[str]:
    """Return the paths of what only a running host needs: its record, drives, sockets and
    snapshots. The others are the logs, and the lock."""
    import glob

    names = ("*.img", "*.sock", "*.cpio", "known_hosts", "snapshots", "state.*")
    return [path for name in names for path in glob.glob(f"{glob.escape(folder)}/{name}")]


def sweep(folder: str) -> None:
    """Remove what only a running host needs. Call this with the host's lock held, when it does not
    run."""
    import shutil

    for path in belongings(folder):
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


if __name__ == "__main__":
    main()
