"""Deal a run's tests out to its workers, each of which holds one host at a time. Pure: it knows no
pytest, no host and no clock.

A worker is told one test more than it runs, because it has to know the next one before it runs the
last. What it is told is not taken back, so that tests are dealt out singly, and as late as can be:

- What fewer hosts than workers can run is begun first, the longest first; what any worker can run
  fills the end.
- Tests of one group (the same hosts, the same guest) stay with one worker until whoever has nothing
  else left takes from the others' groups. First are those that share the guest, one after the
  other, so that it is made clean for none of them; then the longest. The groups with the longest
  tests begin, so that the end is made of short ones.
- A worker that could only end later than the others would without it gets nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """A test to be dealt out: the hosts that can run it, what is best first, or none if it needs
    none; what it has in common with the tests that use the same guests; how long it takes, in
    seconds, as far as is known; and whether others may have used its guests before."""

    test: str
    hosts: tuple[str, ...] = ()
    guest: str = ""
    seconds: float = 0.0
    shares: bool = False

    @property
    def group(self) -> Group:
        return self.hosts, self.guest


#: Tasks with the same hosts and the same guest.
Group = tuple[tuple[str, ...], str]


@dataclass(frozen=True)
class Costs:
    """How long it takes, in seconds, to go to another host, and to have another guest on a host. A
    wrong guess costs some time at the end of a run, and nothing else."""

    host: float = 60.0
    guest: float = 15.0


@dataclass
class _Worker:
    """What a worker was told and has not done: the first task runs, since `began`. `host` and
    `group` are those of the last task that it was told. One that is `leaving` gets nothing more."""

    host: str | None = None
    group: Group | None = None
    told: list[tuple[Task, str | None, float]] = field(default_factory=list)
    began: float = 0.0
    leaving: bool = False

    def ready(self, now: float) -> float:
        """Return when the worker will have done all that it was told."""
        seconds = [cost for _, _, cost in self.told]
        running = max(0.0, seconds[0] - (now - self.began)) if seconds else 0.0
        return now + running + sum(seconds[1:])

    @property
    def held(self) -> set[str]:
        """Return the hosts that the worker has, or will have."""
        return {host for host in (self.host, *(one for _, one, _ in self.told)) if host}


@dataclass(frozen=True)
class _Option:
    """A group from which a worker can take a task: on which host, what it costs to begin, and how
    soon it should be taken: the lowest `rank` first."""

    group: Group
    host: str | None
    cost: float
    rank: tuple[float, ...]


class Schedule:
    """The tests of a run, and who is told to run them. All times are in seconds, on the clock of
    `now`."""

    def __init__(self, tasks: Iterable[Task], costs: Costs | None = None) -> None:
        self._costs = costs or Costs()
        self._left: dict[Group, list[Task]] = {}
        self._workers: dict[str, _Worker] = {}
        for task in tasks:
            self._put(task)

    @property
    def left(self) -> int:
        """Return how many tests nobody was told yet."""
        return sum(map(len, self._left.values()))

    def __contains__(self, worker: str) -> bool:
        return worker in self._workers

    def told(self, worker: str) -> int:
        """Return how many tests a worker was told and has not done."""
        return len(self._workers[worker].told) if worker in self else 0

    def join(self, worker: str) -> None:
        """Let a worker take part. It has no host."""
        self._workers[worker] = _Worker()

    def next(self, worker: str, now: float) -> str | None:
        """Return the test that a worker is to run after those that it was told before; None if it
        is to end."""
        me = self._workers[worker]
        for option in sorted(self._options(me), key=lambda one: one.rank):
            for task in self._left[option.group]:
                seconds = option.cost + task.seconds
                if me.ready(now) + seconds <= self._without(me, task, now):
                    self._take(me, task, option.host, seconds, now)
                    return task.test
        me.leaving = True
        return None

    def done(self, worker: str, test: str, now: float) -> None:
        """Note that a worker has run a test, and runs the next one that it was told."""
        me = self._workers[worker]
        me.told = [one for one in me.told if one[0].test != test]
        me.began = now

    def holds(self, worker: str, host: str) -> None:
        """Note which host a worker has: of several that will do it takes one that is free, and what
        is free is not known here."""
        me = self._workers.get(worker)
        if me and me.told and me.told[0][1] not in (None, host):
            assumed = me.told[0][1]
            me.told = [(task, host if at == assumed else at, cost) for task, at, cost in me.told]
            me.host = host if me.host == assumed else me.host

    def leave(self, worker: str) -> str | None:
        """Take back what a worker was told, for others. Return the test that it ran, which is lost;
        None if it had done all."""
        me = self._workers.pop(worker, _Worker())
        tasks = [task for task, _, _ in me.told]
        for task in tasks[1:]:
            self._put(task)
        return tasks[0].test if tasks else None

    # -- what a worker may take ------------------------------------------------------------

    def _put(self, task: Task) -> None:
        tasks = self._left.setdefault(task.group, [])
        tasks.append(task)
        tasks.sort(key=lambda one: (not one.shares, -one.seconds))

    def _take(self, me: _Worker, task: Task, host: str | None, seconds: float, now: float) -> None:
        tasks = self._left[task.group]
        tasks.remove(task)
        if not tasks:
            del self._left[task.group]
        if not me.told:
            me.began = now
        me.told.append((task, host if task.hosts else None, seconds))
        me.host, me.group = host, task.group

    def _others(self, me: _Worker) -> list[_Worker]:
        return [one for one in self._workers.values() if one is not me]

    def _options(self, me: _Worker) -> Iterator[_Option]:
        """Yield the groups from which a worker can take a task now."""
        others = [one for one in self._others(me) if not one.leaving]
        taken = set().union(*(one.held for one in others))
        # Whoever leaves gives its host back soon, which is waited for if there is no other one.
        soon = set().union(*(one.held for one in self._others(me) if one.leaving))
        workers = len(others) + 1
        for group, tasks in self._left.items():
            hosts, guest = group
            stays = not hosts or me.host in hosts
            free = sorted((one for one in hosts if one not in taken), key=soon.__contains__)
            host = me.host if stays else next(iter(free), None)
            if hosts and host is None:
                continue
            same_guest = stays and (not guest or (me.group is not None and me.group[1] == guest))
            cost = 0.0 if same_guest else self._costs.guest if stays else self._costs.host
            occupied = any(group == one.group for one in others)
            held = bool(taken & set(hosts))
            scarce = 0 < len(hosts) < workers
            if group == me.group:
                tier = 0
            elif stays and not occupied:
                tier = 1 if scarce else 3
            elif scarce and not occupied:
                tier = 2
            elif not stays and not held:
                tier = 4
            else:
                tier = 5 if stays else 6
            load = self._load(hosts) / max(1, len(hosts))
            longest = max(one.seconds for one in tasks)
            rank = (longest, load) if stays else (load, longest)
            yield _Option(group, host, cost, (tier, *(-one for one in rank)))

    def _load(self, hosts: tuple[str, ...]) -> float:
        """Return the seconds of all that is left for just these hosts."""
        return sum(
            task.seconds for one in self._left if one[0] == hosts for task in self._left[one]
        )

    def _without(self, me: _Worker, task: Task, now: float) -> float:
        """Return when the other workers would have done a task, and all else that is left and that
        they can do where they are; infinity if none of them is where the task can run."""
        able = [
            one
            for one in self._others(me)
            if not one.leaving and (not task.hosts or one.host in task.hosts)
        ]
        if not able:
            return float("inf")
        theirs = {one.host for one in able}
        seconds = sum(
            each.seconds
            for (hosts, _), tasks in self._left.items()
            if not hosts or theirs & set(hosts)
            for each in tasks
        )
        return (sum(one.ready(now) for one in able) + seconds) / len(able)
