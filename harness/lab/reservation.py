"""Reserve a host for one run at a time, by two locks.

The lock here is among the runs of this machine, and a run waits for it. The lock on the host is
among all machines; the agent on the host holds it (harness/host/agent.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from harness.artifacts.disk import prepare
from harness.errors import LabError
from harness.progress import Progress

WAIT_SECONDS = 3600.0


@contextlib.contextmanager
def reserved(
    name: str, folder: Path, progress: Progress, *, wait: float = WAIT_SECONDS
) -> Iterator[None]:
    """Reserve the host `name` while the body runs; the lock is a file in `folder`. Wait at most
    `wait` seconds for the run that has the host. Raises LabError when that run still has it."""
    prepare(folder)
    place = folder / "reservations"
    place.mkdir(parents=True, exist_ok=True)
    holder = place / f"{name}.pid"
    lock = filelock.FileLock(place / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        who = holder.read_text() if holder.exists() else "unknown"
        with progress.step(f"wait for host {name}, in use by process {who}", 60):
            try:
                lock.acquire(timeout=wait)
            except filelock.Timeout:
                raise LabError(
                    f"host {name} was in use by process {who} for {wait:.0f} s",
                    fix=f"wait for process {who} to end, or end it if it hangs",
                ) from None
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
