"""Tell of each host of a lab what is known of it without asking it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import psutil

from harness.artifacts.store import Store
from harness.lab.inventory import HostEntry
from harness.lab.provide import machine
from harness.progress import Progress
from harness.virtual.running import ProcessId, Running

#: Whether a host that is no virtual one is up is not known. `booting` is before a host answers.
EXTERNAL, DOWN, BOOTING, UP = "external", "down", "booting", "up"
_LONGEST_COMMAND = 60


@dataclass(frozen=True)
class Owner:
    """The process that a virtual host ends with."""

    pid: int
    user: str
    command: str


@dataclass(frozen=True)
class Status:
    """The state of one host, and where it is reached by SSH. `since` is when a virtual host was
    brought up, in ISO 8601, and `kernel` the one that it was given; one without `owner` stays up
    until `hil lab down`."""

    host: str
    state: str
    address: str | None = None
    port: int | None = None
    since: str | None = None
    kernel: str | None = None
    owner: Owner | None = None

    def __str__(self) -> str:
        where = f" at {self.address}:{self.port}" if self.address else ""
        if self.state == EXTERNAL:
            return f"{self.host}: external{where}; not asked whether it is up"
        if self.state == DOWN:
            return f"{self.host}: down"
        until = "stays up until `hil lab down`"
        if self.owner:
            one = self.owner
            until = f"ends with process {one.pid} of {one.user}: {one.command}"
        given = f" with kernel {self.kernel}" if self.kernel else ""
        return f"{self.host}: {self.state}{where}{given} since {self.since}; {until}"


def status(entry: HostEntry, store: Store, progress: Progress) -> Status:
    """Return the state of a host. No host is reached for that."""
    vm = machine(entry, store, progress)
    if vm is None:
        return Status(entry.name, EXTERNAL, entry.address, entry.port)
    running = vm.running()
    # One whose owner was killed is about to end.
    if running is None or running.orphaned():
        return Status(entry.name, DOWN)
    return Status(
        *(entry.name, UP if running.booted else BOOTING, "127.0.0.1", running.port),
        since=_since(running),
        kernel=running.kernel or None,
        owner=None if running.owner is None else _owner(running.owner),
    )


def _since(running: Running) -> str:
    return datetime.datetime.fromtimestamp(running.since).astimezone().isoformat(" ", "seconds")


def _owner(process: ProcessId) -> Owner:
    try:
        found = psutil.Process(process.pid)
        command = " ".join(found.cmdline())
        user = found.username()
    except psutil.Error:
        user, command = "unknown", "unknown"
    if len(command) > _LONGEST_COMMAND:
        command = command[: _LONGEST_COMMAND - 1] + "…"
    return Owner(process.pid, user, command)
