"""Measure how runs share the places of a real labgrid: 50 hosts and 20 runs, and fewer hosts.

The hosts are stand-ins: nobody enters them. A run holds its places for some seconds, and begins
again. A scene has two figures, and a line on standard error with more: how long runs waited, how
evenly, how long a place was free while a run waited that could have had it, and the coordinator's
share of a CPU.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.runner.figure import Benchmark, Figure, Samples
from benchmarks.runner.program import alone
from harness.lab.claimant import Claimant
from harness.lab.coordinator import Coordinator, labgrid
from harness.lab.inventory import Inventory
from harness.lab.places import held
from harness.progress import Progress
from tests import labgrid_lab
from tests.labgrid_lab import Labgrid, service

#: Processes are forked before gRPC has threads.
_FORK = multiprocessing.get_context("fork")
#: How long a run works with its places, in seconds: evenly between these.
_WORK = (10.0, 30.0)
_SEED = 22


@dataclass(frozen=True)
class Scene:
    """How many hosts of two kinds there are, and how many runs that want one of them, or both.
    Each run begins so many times; it wants up to `workers` hosts of the first kind."""

    name: str
    common: int
    special: int
    runs: int
    both: int = 0
    workers: int = 1
    rounds: int = 2
    #: How the names of its figures begin.
    key: str = ""

    @property
    def wait(self) -> Figure:
        return Figure(f"{self.key}-wait", f"{self.name}: the median of their waits", "s")

    @property
    def unused(self) -> Figure:
        what = f"{self.name}: time of places that nobody used although a run waited for them"
        return Figure(f"{self.key}-unused", what, "%", compared=False)


SCENES = (
    Scene("50 hosts, 20 runs of 1 worker", 50, 0, 20, key="places-50"),
    Scene("50 hosts, 20 runs of 4 workers", 50, 0, 20, workers=4, key="places-50-workers"),
    Scene("45 + 5 special hosts, 20 runs, all need both", 45, 5, 20, both=20, key="places-both"),
    Scene("10 hosts, 20 runs of 1 worker", 10, 0, 20, key="places-10"),
    Scene("5 hosts, 20 runs of 1 worker", 5, 0, 20, key="places-5"),
)


@dataclass(frozen=True)
class Turn:
    """One time that a run had places: when it asked, began and ended, by this machine's monotonic
    clock, and the names of its places."""

    run: int
    asked: float
    began: float
    ended: float
    places: tuple[str, ...]

    @property
    def waited(self) -> float:
        return self.began - self.asked


def measure(share: float) -> Samples:
    """Yield the figures of each scene; of the first one only for a quick look."""
    labgrid()  # imported before the runs are forked: that is no part of their wait
    print(
        f"{'':46} {'wait: median':>12} {'95 %':>6} {'longest':>7} {'evenness':>8} "
        f"{'handed over':>11} {'free, wanted':>12} {'coordinator':>11}",
        file=sys.stderr,
    )
    for scene in SCENES if share == 1 else SCENES[:1]:
        turns, places = _play(scene)
        yield scene.wait, statistics.median(turn.waited for turn in turns)
        yield scene.unused, _wasted(turns, places)


def _play(scene: Scene) -> tuple[list[Turn], list[str]]:
    """Return the turns of a scene, and the names of its places."""
    with tempfile.TemporaryDirectory() as folder:
        with labgrid_lab.labgrid(Path(folder)) as lab:
            names = {f"common-{at}": "common" for at in range(scene.common)}
            names |= {f"special-{at}": "special" for at in range(scene.special)}
            lab.export("stand-ins", {name: {"host": service(22)} for name in names})
            _child(_furnish, lab, names)
            used = psutil.Process(lab.processes["coordinator"].pid)
            before, begun = sum(used.cpu_times()[:2]), time.monotonic()
            results = Path(folder) / "results"
            results.mkdir()
            runs = [
                _FORK.Process(target=_run, args=(scene, lab.address, at, results))
                for at in range(scene.runs)
            ]
            for run in runs:
                run.start()
            for run in runs:
                run.join()
            assert not any(run.exitcode for run in runs), [run.exitcode for run in runs]
            took = time.monotonic() - begun
            share = (sum(used.cpu_times()[:2]) - before) / took
            turns = [
                Turn(**{**one, "places": tuple(one["places"])})
                for file in results.iterdir()
                for one in json.loads(file.read_text())
            ]
    assert len(turns) == scene.runs * scene.rounds, f"{len(turns)} turns: a run has failed"
    _check(turns)
    _print(scene, turns, list(names), share)
    return turns, list(names)


def _child(act: object, *arguments: object) -> None:
    process = _FORK.Process(target=act, args=arguments)  # type: ignore[arg-type]
    process.start()
    process.join()
    assert process.exitcode == 0


def _furnish(lab: Labgrid, names: Mapping[str, str]) -> None:
    """Make the places."""
    with Coordinator.connected(lab.address, Claimant("benchmark", "owner")) as one:
        pb = labgrid().pb
        for name, kind in names.items():
            one._call("AddPlace", pb.AddPlaceRequest(name=name))
            match = pb.AddPlaceMatchRequest(placename=name, pattern=f"stand-ins/{name}/*")
            one._call("AddPlaceMatch", match)
            tags = {"board": "grace", "kind": kind}
            one._call("SetPlaceTags", pb.SetPlaceTagsRequest(placename=name, tags=tags))


def _run(scene: Scene, address: str, at: int, results: Path) -> None:
    """Have places, a number of times, and write the turns down."""
    chance = random.Random(f"{_SEED} {at}")
    wishes = [{"kind": "common"}] * scene.workers
    if at < scene.both:
        wishes = [{"kind": "common"}, {"kind": "special"}]
    hosts = [
        {"name": f"h{n}", "place": wish, "key": "/k", "known_hosts": "/k"}
        for n, wish in enumerate(wishes)
    ]
    lab = Inventory.model_validate({"lab": "l", "coordinator": address, "hosts": hosts})
    turns = []
    for _ in range(scene.rounds):
        asked = time.monotonic()
        with held(lab, lab.hosts, Progress(enabled=False), most=scene.workers) as has:
            began = time.monotonic()
            time.sleep(chance.uniform(*_WORK))
            ended = time.monotonic()
        turns.append(
            {"run": at, "asked": asked, "began": began, "ended": ended}
            | {"places": list(has.places.values())}
        )
    (results / str(os.getpid())).write_text(json.dumps(turns))


def _check(turns: Sequence[Turn]) -> None:
    """Raise AssertionError if two runs had one place."""
    for place, of_place in _by_place(turns).items():
        for one, other in itertools.pairwise(of_place):
            assert one.ended <= other.began, f"{place} was had twice"


def _by_place(turns: Sequence[Turn]) -> dict[str, list[Turn]]:
    found: dict[str, list[Turn]] = {}
    for turn in sorted(turns, key=lambda one: one.began):
        for place in turn.places:
            found.setdefault(place, []).append(turn)
    return found


def _print(scene: Scene, turns: Sequence[Turn], names: Sequence[str], share: float) -> None:
    waits = sorted(turn.waited for turn in turns)
    by_run = [sum(turn.waited for turn in turns if turn.run == at) for at in range(scene.runs)]
    # Jain's index: 1 if all runs waited alike, 1/n if one waited for all.
    even = sum(by_run) ** 2 / (len(by_run) * sum(one**2 for one in by_run))
    handed = [
        other.began - one.ended
        for of_place in _by_place(turns).values()
        for one, other in itertools.pairwise(of_place)
        if other.asked < one.ended
    ]
    most = waits[int(len(waits) * 0.95)]
    print(
        f"{scene.name:46} {statistics.median(waits):10.1f} s {most:4.1f} s {waits[-1]:5.1f} s "
        f"{even:8.2f} "
        + (f"{statistics.median(handed):9.1f} s " if handed else f"{'-':>11} ")
        + f"{_wasted(turns, names):10.1f} % {share:9.0%} CPU",
        file=sys.stderr,
        flush=True,
    )


def _wasted(turns: Sequence[Turn], names: Sequence[str]) -> float:
    """Return which part of the places' time, in percent, nobody used although a run had asked that
    then got the place; without the first second of each such time."""
    begun, over = min(one.asked for one in turns), max(one.ended for one in turns)
    idle = 0.0
    for of_place in _by_place(turns).values():
        for one, other in itertools.pairwise(of_place):
            idle += max(0.0, other.began - max(one.ended, other.asked) - 1.0)
    return 100 * idle / (len(names) * (over - begun))


BENCHMARK = Benchmark(
    tuple(figure for scene in SCENES for figure in (scene.wait, scene.unused)),
    measure,
    seconds=400,
    rounds=1,
    apart=True,
)

if __name__ == "__main__":
    sys.exit(alone(__file__))
