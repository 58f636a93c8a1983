"""Tell the state of each host of a lab: what is known of it here, and what it answers."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import psutil

from harness.artifacts import disk, stack
from harness.artifacts.store import Store
from harness.errors import LabError
from harness.host.answer import HostAnswer, ask
from harness.host.holder import Holder
from harness.host.target import Target
from harness.lab.coordinator import Coordinator
from harness.lab.inventory import HostEntry, Inventory
from harness.lab.login import login
from harness.lab.places import address, fitting, holder, text
from harness.lab.provide import describe_virtual, machine
from harness.lab.reservation import holder_here
from harness.progress import Progress
from harness.virtual.running import ProcessId, Running

#: `booting` is before a virtual host answers; a host that is not virtual is up if it answers.
DOWN, BOOTING, UP, UNREACHABLE = "down", "booting", "up", "unreachable"
#: Of a host that is one of labgrid's places, not known which.
PLACES = "a place of labgrid"
_LONGEST_COMMAND = 60
#: So many hosts are asked at a time.
_AT_A_TIME = 8


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
    until `hil lab down`. `answer` is what the host tells, None if it was not asked, and `problem`
    why it tells nothing. `holder` is the run that has it. Of a host that asks for a place, `wish`
    has the tags that it must have, `places` a line for each that fits, and `waiting` is the number
    of reservations that wait for one."""

    host: str
    state: str
    address: str | None = None
    port: int | None = None
    since: str | None = None
    kernel: str | None = None
    owner: Owner | None = None
    answer: HostAnswer | None = None
    problem: str | None = None
    holder: Holder | None = None
    wish: str | None = None
    places: tuple[str, ...] = ()
    waiting: int = 0

    def __str__(self) -> str:
        return "\n  ".join([self._head(), *self._lines()])

    def _head(self) -> str:
        if self.state == DOWN:
            return f"{self.host}: down"
        if self.state == PLACES:
            return f"{self.host}: {PLACES} with {self.wish}"
        out = f"{self.host}: {self.state}{f' at {self.address}:{self.port}' if self.port else ''}"
        if self.since is None:
            return out
        until = "stays up until `hil lab down`"
        if self.owner:
            one = self.owner
            until = f"ends with process {one.pid} of {one.user}: {one.command}"
        given = f" with kernel {self.kernel}" if self.kernel else ""
        return f"{out}{given} since {self.since}; {until}"

    def _lines(self) -> Iterator[str]:
        yield from self.places
        if self.waiting:
            yield f"{self.waiting} waiting for one of them"
        if self.answer:
            one = self.answer
            yield f"kernel {one.kernel}, QEMU {one.qemu or 'not found'}, up for {_duration(one.up)}"
            yield "free: " + ", ".join(
                f"{disk.size(on.free)} of {disk.size(on.size)} at {on.mounted}" for on in one.disks
            )
        if self.problem:
            yield self.problem
        if self.holder:
            yield f"in use by {self.holder}"
        elif self.answer and self.answer.held:
            yield "in use by somebody unknown"
        elif self.answer:
            yield "free for a run"


def statuses(lab: Inventory, store: Store, progress: Progress) -> list[Status]:
    """Return the states of a lab's hosts. Several are asked at a time, so that one that does not
    answer delays nobody."""
    entries = lab.hosts
    with progress.step(f"ask {len(entries)} hosts", 2), ThreadPoolExecutor(_AT_A_TIME) as pool:
        return list(
            pool.map(
                lambda entry: of_places(lab, entry) if entry.place else status(entry, store),
                entries,
            )
        )


def of_places(lab: Inventory, entry: HostEntry) -> Status:
    """Return the state of a host that asks for a place, as labgrid's coordinator tells: which
    places fit, who has them, and how many wait for one. No host is asked: which one it will be is
    not known."""
    assert entry.place
    wish = text(entry.place)
    try:
        with Coordinator.connected(address(lab)) as coordinator:
            found, waiting = fitting(coordinator, entry.place)
    except LabError as problem:
        return Status(entry.name, UNREACHABLE, problem=problem.message)
    if not found:
        return Status(entry.name, PLACES, wish=wish, problem=f"no place has {wish}")
    lines = []
    for place in found:
        state = f"in use by {holder(place)}" if place.claimant else "free for a run"
        lines.append(f"{place.name}: {'its exporter is gone' if place.missing else state}")
    return Status(entry.name, PLACES, wish=wish, places=tuple(lines), waiting=waiting)


def status(entry: HostEntry, store: Store) -> Status:
    """Return the state of a host. It is asked over SSH, unless it is a virtual one that is not up;
    nothing is booted, built or reserved for that."""
    quiet = Progress(enabled=False)
    try:
        holder = holder_here(entry, store.root)
        vm = machine(entry, store, quiet)
        if vm is None:
            target = login(entry)
            known = Status(entry.name, UNREACHABLE, target.address, target.port, holder=holder)
            return _asked(known, target, entry.qemu)
        running = vm.running()
        # One whose owner was killed is about to end.
        if running is None or running.orphaned():
            return Status(entry.name, DOWN, holder=holder)
        known = _of_virtual(entry.name, running, holder)
        # Without the record of the stack a mirror would have to be asked what the host is made of.
        if not running.booted or stack.recorded(store.root) is None:
            return known
        return _asked(known, describe_virtual(entry, vm, running).target, entry.qemu)
    except LabError as problem:
        return Status(entry.name, UNREACHABLE, problem=problem.message)


def _of_virtual(name: str, running: Running, holder: Holder | None) -> Status:
    return Status(
        *(name, UP if running.booted else BOOTING, "127.0.0.1", running.port),
        since=_since(running),
        kernel=running.kernel or None,
        owner=None if running.owner is None else _owner(running.owner),
        holder=holder,
    )


def _asked(known: Status, target: Target, qemu: str) -> Status:
    """Return a status with what the host answers. Its lock says who has it better than ours, which
    only runs that share a cache have."""
    try:
        answer = ask(target, qemu)
    except LabError as problem:
        return replace(known, problem=problem.message)
    return replace(known, state=UP, answer=answer, holder=answer.holder or known.holder)


def _duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    hours, minutes = divmod(rest // 60, 60)
    return f"{days} days" if days > 1 else f"{days * 24 + hours}:{minutes:02} h"


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
