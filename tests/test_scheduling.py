"""Tests are dealt out so that all workers end at about the same time, no two have one host, and
special hosts run nothing but what needs them. Workers and their clock are simulated."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.fixtures import placement
from harness.fixtures.shard import dealt
from harness.lab.schedule import Costs, Schedule, Task

COSTS = Costs(host=60, guest=15)
SOAK = 620.0


@dataclass
class Worker:
    """A simulated worker of pytest-xdist: it begins a test once it knows the next one, or that
    there is none."""

    told: list[str] = field(default_factory=list)
    ends: bool = False
    host: str | None = None
    guest: str = ""
    waits: bool = False


@dataclass
class Run:
    """A simulated run: what each worker ran, from when to when, and on which host."""

    tasks: Sequence[Task]
    noise: float = 0.0
    kills: str = ""
    log: list[tuple[str, str, float, float, str | None]] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        chance = random.Random(1)
        self.by_name = {task.test: task for task in self.tasks}
        self.true = {
            task.test: task.seconds * (1 + chance.uniform(-self.noise, self.noise))
            for task in self.tasks
        }
        self.schedule = Schedule(self.tasks, COSTS)
        self.workers: dict[str, Worker] = {}
        self.events: list[tuple[float, str]] = []

    def go(self, workers: int) -> Run:
        for number in range(workers):
            self.workers[f"gw{number}"] = Worker()
            self.schedule.join(f"gw{number}")
        for name in [*self.workers] * 2:
            self.deal(name, 0)
        for name in self.workers:
            self.begin(name, 0)
        while self.events:
            now, name = heapq.heappop(self.events)
            worker = self.workers[name]
            if worker.waits:
                self.begin(name, now)
                continue
            if worker.told[0] == self.kills:
                self.crash(name, now)
                continue
            self.schedule.done(name, worker.told.pop(0), now)
            self.deal(name, now)
            self.begin(name, now)
        return self

    def deal(self, name: str, now: float) -> None:
        worker = self.workers[name]
        test = None if worker.ends else self.schedule.next(name, now)
        worker.ends = test is None
        worker.told += [test] if test else []

    def begin(self, name: str, now: float) -> None:
        worker = self.workers[name]
        if not worker.told:
            self.ended[name] = now
            worker.host = None
            return
        task = self.by_name[worker.told[0]]
        start = now
        if task.hosts and worker.host not in task.hosts:
            has = {one.host for one in self.workers.values() if one is not worker}
            worker.host = next((one for one in task.hosts if one not in has), None)
            worker.waits = worker.host is None
            if worker.waits:
                others = [at for at, one in self.events if not self.workers[one].waits]
                heapq.heappush(self.events, (min(others) + 0.001, name))
                return
            start += COSTS.host
        elif task.guest and task.guest != worker.guest:
            start += COSTS.guest
        worker.guest = task.guest or worker.guest
        self.schedule.holds(name, worker.host or "")
        end = start + self.true[task.test]
        self.log.append((name, task.test, now, end, worker.host if task.hosts else None))
        heapq.heappush(self.events, (end, name))

    def crash(self, name: str, now: float) -> None:
        """End a worker amid its test; another one takes its place."""
        lost = self.schedule.leave(name)
        assert lost == self.kills
        self.lost.append(lost)
        del self.workers[name]
        clone = f"gw{len(self.workers) + len(self.lost)}"
        self.workers[clone] = Worker()
        self.schedule.join(clone)
        for _ in range(2):
            self.deal(clone, now)
        self.begin(clone, now)

    @property
    def ran(self) -> list[str]:
        return sorted(test for _, test, *_ in self.log)

    @property
    def spread(self) -> float:
        return max(self.ended.values()) - min(self.ended.values())


def some(kind: str, count: int, hosts: tuple[str, ...], guests: int, longest: float) -> list[Task]:
    chance = random.Random(kind)
    return [
        Task(f"{kind}{one}", hosts, f"{kind}-{one % guests}", chance.uniform(0.5, longest))
        for one in range(count)
    ]


def night(*plain: str) -> list[Task]:
    """Return the tests of a night on a lab like ours, with so many hosts for the plain ones."""
    tasks = some("plain", 300, plain, 25, 8)
    tasks += [Task("soak", plain, "soak", SOAK)]
    tasks += some("cmdqv", 60, ("cmdqv",), 5, 30)
    tasks += some("debug", 6, ("debug",), 2, 20)
    for odd in ("one-guest", "few-sids", "few-queues", "other-version"):
        tasks += some(odd, 2, (odd,), 1, 30)
    return tasks + [Task(f"nothing{one}", seconds=2) for one in range(10)]


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_end_together(workers: int, noise: float) -> None:
    tasks = night("plain-1", "plain-2", "plain-3")
    run = Run(tasks, noise).go(workers)
    assert run.ran == sorted(task.test for task in tasks)
    assert run.spread < 30
    # Hosts and guests are changed in a third of the tests' own time at most.
    ideal = sum(run.true.values()) / workers
    assert max(run.ended.values()) < 1.4 * ideal


def test_equal_hosts_are_as_many_as_workers() -> None:
    run = Run(some("plain", 100, ("a", "b", "c"), 10, 8)).go(2)
    assert {host for *_, host in run.log} == {"a", "b"}
    assert run.spread < 30


def test_a_single_host_is_begun_at_once_and_nothing_waits_for_it() -> None:
    """What one host alone can run takes longest: it decides when the run ends."""
    run = Run(night("plain")).go(2)
    (first,) = {name for name, test, *_ in run.log if test.startswith("plain")}
    assert next(test for name, test, *_ in run.log if name == first) == "soak"
    assert {host for name, *_, host in run.log if name == first} == {"plain"}
    assert run.ran == sorted(run.by_name)


def test_the_soak_does_not_come_last() -> None:
    run = Run(night("plain-1", "plain-2")).go(2)
    (end,) = [end for _, test, _, end, _ in run.log if test == "soak"]
    assert end < max(run.ended.values()) - 60


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_host_is_left_once(workers: int) -> None:
    """To go to another host costs a minute: whoever has one does all that needs it."""
    run = Run(night("plain-1", "plain-2")).go(workers)
    for name in run.workers:
        hosts = [host for worker, *_, host in run.log if worker == name and host]
        changes = [one for one, before in zip(hosts, [None, *hosts], strict=False) if one != before]
        assert len(changes) == len(set(changes)), name


def test_what_few_hosts_can_run_begins() -> None:
    """Whoever comes to a special host last keeps all others waiting, if they have nothing left."""
    tasks = some("plain", 150, ("a", "b"), 10, 8)
    for host in "uvwxyz":
        tasks += some(host, 16, (host,), 1, 25)
    run = Run(tasks).go(2)
    assert run.spread < 30
    for worker in run.workers:
        hosts = [len(run.by_name[test].hosts) for name, test, *_ in run.log if name == worker]
        assert hosts == sorted(hosts)


def test_a_guest_stays_with_one_worker_while_there_are_others() -> None:
    run = Run(some("plain", 200, ("a", "b"), 20, 8)).go(2)
    shared = sum(
        len({name for name, test, *_ in run.log if run.by_name[test].guest == guest}) > 1
        for guest in {task.guest for task in run.tasks}
    )
    assert shared <= 2


def test_long_tests_come_first() -> None:
    run = Run([Task(f"t{n}", ("a", "b"), "g", float(n)) for n in range(1, 101)]).go(2)
    for worker in run.workers:
        ran = [run.by_name[test].seconds for name, test, *_ in run.log if name == worker]
        assert ran == sorted(ran, reverse=True)


def test_those_that_share_a_guest_are_not_parted_by_one_that_has_it_alone() -> None:
    tests = [Task(f"t{n}", ("a",), "g", float(n), shares=n % 2 == 0) for n in range(10)]
    ran = [test for _, test, *_ in Run(tests).go(1).log]
    assert ran == ["t8", "t6", "t4", "t2", "t0", "t9", "t7", "t5", "t3", "t1"]


def test_more_workers_than_hosts_do_not_wait() -> None:
    run = Run(some("plain", 20, ("only",), 2, 8)).go(3)
    assert run.ran == sorted(run.by_name)
    assert sorted(run.ended.values())[:2] == [0, 0]


def test_no_host_is_booted_for_what_ends_sooner_without_it() -> None:
    plain = [Task(f"plain{one}", ("a", "b"), "g", 30.0) for one in range(4)]
    special = [Task(f"special{one}", ("s",), "g", 40.0) for one in range(2)]
    run = Run([*plain, *special]).go(2)
    assert {host for *_, host in run.log} == {"a", "s"}
    # With more to do it is.
    more = [Task(f"more{one}", ("a", "b"), "g", 30.0) for one in range(8)]
    assert {host for *_, host in Run([*plain, *special, *more]).go(2).log} == {"a", "b", "s"}


@pytest.mark.parametrize("kills", ["soak", "cmdqv0", "few-sids1", "nothing3", "plain299"])
def test_after_a_crash_all_other_tests_run_once(kills: str) -> None:
    tasks = night("plain-1", "plain-2")
    run = Run(tasks, kills=kills).go(2)
    assert run.lost == [kills]
    assert run.ran == sorted(task.test for task in tasks)


def test_the_host_that_a_worker_really_has_counts() -> None:
    schedule = Schedule([Task(f"{host}{n}", (host,)) for host in "ab" for n in range(3)])
    first = Schedule([Task("any", ("a", "b")), Task("more", ("a", "b"))])
    first.join("gw0")
    assert first.next("gw0", 0) == "any"
    first.holds("gw0", "b")
    first.join("gw1")
    assert first.next("gw1", 0) == "more"
    assert first._workers["gw1"].host == "a"
    for name in ("gw0", "gw1"):
        schedule.join(name)
    assert schedule.next("gw0", 0) == "a0"
    assert schedule.next("gw1", 0) == "b0"


def test_a_host_that_is_free_is_better_than_one_that_will_be() -> None:
    schedule = Schedule([Task(f"t{n}", ("a", "b")) for n in range(4)])
    for name in ("gw0", "gw1"):
        schedule.join(name)
        assert schedule.next(name, 0)
        assert schedule.next(name, 0)
    assert schedule.next("gw0", 0) is None
    assert schedule.leave("gw1") == "t2"
    schedule.join("gw2")
    assert schedule.next("gw2", 0) == "t3"
    assert schedule._workers["gw2"].held == {"b"}


TASKS = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abcd"), max_size=3, unique=True).map(tuple),
        st.sampled_from(["", "x", "y"]),
        st.floats(0, 200),
        st.booleans(),
    ),
    max_size=40,
).map(lambda given: [Task(f"t{number}", *one) for number, one in enumerate(given)])


@given(TASKS, st.integers(1, 5), st.integers(0, 39))
def test_every_test_is_told_once(tasks: list[Task], workers: int, killed: int) -> None:
    kills = f"t{killed}" if killed < len(tasks) else ""
    run = Run(tasks, kills=kills).go(workers)
    assert run.ran == sorted(task.test for task in tasks)
    assert run.schedule.left == 0


# -- what is known beforehand ------------------------------------------------------------------


def test_a_test_takes_what_it_took_before() -> None:
    line = '["t", ["a", "b"], "3", 0.0, true]'
    assert placement.read(line, {"t": 7.0}, 4.0) == Task("t", ("a", "b"), "3", 7.0, shares=True)
    assert placement.read(line, {}, 4.0).seconds == 4
    # A soak takes as long as this run is to soak, whatever it took in others.
    soak = '["t", [], "", 600.0, false]'
    assert placement.read(soak, {"t": 61.0}, 4.0) == Task("t", seconds=600)


def test_parts_take_about_the_same_time() -> None:
    files = {
        Path(name): seconds for name, seconds in zip("abcdef", (9, 7, 6, 5, 4, 3), strict=True)
    }
    parts = dealt(files, 2)
    assert [sum(files[one] for one in part) for part in parts] == [17, 17]
    assert dealt(dict(reversed(files.items())), 2) == parts
    assert dealt(files, 8)[6:] == [set(), set()]
