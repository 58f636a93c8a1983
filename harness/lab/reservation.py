"""One run at a time on a host. Two locks say so: one here, among the runs of this machine, which a
run waits for; one on the host, among all machines, which its agent holds (harness/host/agent.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from harness.errors import LabError
from harness.progress import Progress

WAIT_SECONDS = 3600.0


@contextlib.contextmanager
def reserved(
    name: str, folder: Path, progress: Progress, *, wait: float = WAIT_SECONDS
) -> Iterator[None]:
    """Have the host to ourselves, once whoever has it lets go; `wait` in seconds at most."""
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
                    fix=f"end process {who} if it hangs",
                ) from None
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
