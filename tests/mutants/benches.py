"""Try several mutants side by side, each on hosts of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from ruamel.yaml import YAML

from harness.errors import HilError
from harness.report.requirements import Requirement
from tests.mutants.catalogue import LAB, Mutant
from tests.mutants.trial import Outcome, Verdict, tried
from tests.mutants.workshop import Workshop


class StoppedError(Exception):
    """The call ends, and so does what a thread of it runs."""


def write_lab(path: Path, benches: Sequence[int]) -> Path:
    """Write the inventory of these benches: each has the hosts of LAB, under names of its own.
    Return its path."""
    yaml = YAML(typ="safe")
    lab = yaml.load(LAB)
    lab["hosts"] = [
        {**host, "name": f"{host['name']}-{bench}"} for bench in benches for host in lab["hosts"]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        yaml.dump(lab, file)
    return path


@dataclass(frozen=True)
class Benches:
    """What mutants are tried with, so many at a time as there are labs. `rest` says whether the
    rest of the suites is, too."""

    workshop: Workshop
    tests: Sequence[Requirement]
    folder: Path
    labs: Sequence[Path]
    rest: bool

    def verdict_on(self, mutant: Mutant, lab: Path, advance: Callable[[float], None]) -> Verdict:
        """Make a mutant and try it in a lab. A mutant that cannot be made is broken."""
        if mutant.unreachable:
            return Verdict(Outcome.UNREACHABLE, why=mutant.unreachable)
        runs = self.folder / "runs" / f"{mutant.kind}-{mutant.name}"
        try:
            with self.workshop.made(mutant) as made:
                subject = replace(made, options=(*made.options, f"--lab={lab}"))
                return tried(mutant, self.tests, subject, runs, advance, rest=self.rest)
        except HilError as problem:
            return Verdict(Outcome.BROKEN, why=problem.message)

    def verdicts(
        self, mutants: Sequence[Mutant], advance: Callable[[float], None]
    ) -> Generator[tuple[Mutant, Verdict]]:
        """Yield the verdict on each mutant as it comes; `advance` is told how far all are. Whoever
        stops early ends what runs."""
        stop, free = threading.Event(), SimpleQueue[Path]()
        parts = dict.fromkeys((one.id for one in mutants), 0.0)
        for lab in self.labs:
            free.put(lab)

        def told(mutant: Mutant, part: float) -> None:
            if stop.is_set():
                raise StoppedError
            parts[mutant.id] = part
            advance(sum(parts.values()) / len(parts))

        def try_one(mutant: Mutant) -> Verdict:
            lab = free.get()
            try:
                told(mutant, 0.0)
                return self.verdict_on(mutant, lab, lambda part: told(mutant, part))
            except BaseException:
                stop.set()
                raise
            finally:
                free.put(lab)

        with ThreadPoolExecutor(len(self.labs)) as pool:
            try:
                asked = {pool.submit(try_one, one): one for one in mutants}
                for done in as_completed(asked):
                    # Another one's error is what stopped it.
                    if not isinstance(done.exception(), StoppedError):
                        parts[asked[done].id] = 1.0
                        yield asked[done], done.result()
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
