"""Reserve a host for one run at a time, by two locks, and wait for the run that has it.

The lock here is among the runs that share a cache. The lock on the host is among all users and
machines; the agent on the host holds it (harness/host/agent), and it decides. Both say who has
the host. The waits are on the monotonic clock.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import filelock
import psutil

from harness.artifacts.disk import prepare, told_when_full
from harness.host.connection import LinkLostError
from harness.host.holder import Holder
from harness.host.host import Host, HostDescription, Upload
from harness.host.link import UnreachableError
from harness.host.session import ReservedError
from harness.lab.inventory import HostEntry
from harness.lab.login import login
from harness.progress import Progress
from harness.waiting import wait_for

#: Longest that a run waits for another one that has its host, in seconds; here and on the host.
WAIT_SECONDS = 3600.0
#: Longest that a host takes to come up by a reboot, in which a server tests its memory.
REBOOT_SECONDS = 900.0
#: How often a run asks for the lock here, and for the one on the host, in seconds.
ASK_HERE, _ASK_HOST = 0.1, 5.0
#: So much of an address is in the names of files, which have at most 255 bytes.
_LONGEST_NAME = 180


def machine_of(entry: HostEntry) -> str:
    """Return what tells the machine of an entry from all others that share a cache: its address
    and port, or for a virtual host its place in the cache. One machine may be in two inventories,
    by two names. Raises LabError for an `ssh_config` that cannot be used."""
    if entry.virtual is not None:
        return f"virtual-{entry.name}"
    target = login(entry)
    address = quote(target.address.lower(), safe="")
    if len(address) > _LONGEST_NAME:
        digest = hashlib.sha256(address.encode()).hexdigest()[:16]
        address = f"{address[:_LONGEST_NAME]}-{digest}"
    return f"{address}-port-{target.port}"


@contextlib.contextmanager
def reserved(
    entry: HostEntry, folder: Path, progress: Progress, *, wait: float = WAIT_SECONDS
) -> Iterator[None]:
    """Reserve the machine of an inventory's entry while the body runs, among the runs of this
    cache; the lock is a file in `folder`. Wait at most `wait` seconds for the run that has it.
    Raises ReservedError when that run still has it, LabError where `machine_of` does."""
    prepare(folder)
    place = folder / "reservations"
    place.mkdir(parents=True, exist_ok=True)
    machine = machine_of(entry)
    holder = place / f"{machine}.holder"
    lock = filelock.FileLock(place / f"{machine}.lock")

    def take() -> None:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            by = _holder(holder)
            raise ReservedError(
                f"host {entry.name} is in use by {by or 'a run that has just begun'}",
                by=str(by),
                ending=f"end it by `kill {by.pid}` on {by.machine}" if by else "",
            ) from None

    waited(take, progress, wait, ASK_HERE)
    new = holder.with_suffix(".new")
    try:
        with told_when_full(f"reserving host {entry.name}", folder):
            new.write_text(Holder.me().json())
            new.replace(holder)
        yield
    finally:
        for file in (new, holder):
            file.unlink(missing_ok=True)
        lock.release()


def holder_here(entry: HostEntry, folder: Path) -> Holder | None:
    """Return the process that has reserved the machine of an entry among the runs of this cache,
    None if none has. It is not waited for, and the lock is not taken. Raises LabError where
    `machine_of` does."""
    # Whoever was killed has left its file, and whoever has the lock has written one.
    holder = _holder(folder / "reservations" / f"{machine_of(entry)}.holder")
    here = holder is not None and holder.machine == Holder.me().machine
    return holder if here and holder and psutil.pid_exists(holder.pid) else None


def _holder(file: Path) -> Holder | None:
    try:
        return Holder.parse(file.read_text())
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def opened(
    description: HostDescription,
    uploads: tuple[Upload, ...],
    progress: Progress,
    *,
    wait: float = WAIT_SECONDS,
) -> Iterator[Host]:
    """Yield the host, open, as Host.open does, once no other session has it; wait at most `wait`
    seconds for that. Show how earlier sessions ended, if nobody has seen it. Raises ReservedError
    when another session still has the host, LabError for whatever makes it unusable."""
    found: list[Host] = []
    with contextlib.ExitStack() as stack:

        def take() -> None:
            found.append(stack.enter_context(Host.open(description, uploads)))

        waited(take, progress, wait)
        (host,) = found
        for sentence in host.session.inherited:
            progress.note(f"host {host.name}: {sentence}")
        yield host


def waited(
    take: Callable[[], None],
    progress: Progress,
    wait: float = WAIT_SECONDS,
    interval: float = _ASK_HOST,
) -> None:
    """Call `take` every `interval` seconds until it raises no ReservedError, which tells who has
    the host. Raises the last one after `wait` seconds. A host that somebody has had may not answer
    for a while: if it ran another kernel, it is rebooted at the end."""
    end = time.monotonic() + wait
    lost: float | None = None  # since when

    def attempt(before: ReservedError | None) -> ReservedError | None:
        nonlocal lost
        try:
            take()
        except ReservedError as busy:
            lost = None
            return busy
        except (LinkLostError, UnreachableError):
            now = time.monotonic()
            lost = now if lost is None else lost
            if before is None or now - lost > REBOOT_SECONDS:
                raise
            return before
        return None

    busy = attempt(None)
    while busy is not None:
        left = end - time.monotonic()
        if left <= 0:
            if wait:
                busy.message += f"; waited {wait:.0f} s for it"
            raise busy
        with progress.waiting(busy.told, left) as report:

            def changed(before: ReservedError = busy) -> bool:
                nonlocal busy
                busy = attempt(before)
                now = time.monotonic()
                report(1 - max(0.0, end - now) / wait)
                return busy is None or busy.by != before.by or now >= end

            wait_for(busy.message, changed, deadline=left, interval=interval)
