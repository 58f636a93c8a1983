"""What is known of the mutants of one module: a database of Cosmic Ray's, which its own tools read,
too (`cr-report`, `cr-html`)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.commands.init import init
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkResult

from harness.checkout import ROOT
from tests.mutation.bench import Ended
from tests.mutation.plan import Change, Mutant, chosen, quiet_spans

#: What the database says of a mutant that ran into its time limit.
_LATE = "too late"


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: `killer` is the test that failed, or empty if it survived. `line`
    and `change` are the mutant's."""

    line: int
    change: Change
    killer: str

    @property
    def late(self) -> bool:
        """Return whether the tests did not end."""
        return self.killer == _LATE


@dataclass
class Session:
    """The mutants of a module. `tests` is the digest of the tests that survivors survived."""

    module: str
    tests: str
    _base: WorkDB

    def pending(self) -> Iterator[tuple[str, MutationSpec]]:
        """Yield the key of each mutant that is still to be tried, and how it is made. A mutant that
        was killed stays so until the module changes; one that survived is tried again when its
        tests have changed."""
        known = dict(self._base.results)
        for item in self._base.work_items:
            result = known.get(item.job_id)
            survived = result is not None and result.test_outcome == TestOutcome.SURVIVED
            if result is None or (survived and result.output != self.tests):
                yield item.job_id, item.mutations[0]

    def write(self, key: str, tried: Mutant, ended: Ended) -> None:
        """Keep how the trial of a mutant ended."""
        outcome = TestOutcome.KILLED if ended.killer else TestOutcome.SURVIVED
        output = _LATE if ended.late else ended.killer or self.tests
        diff = json.dumps([tried.line, *dataclasses.astuple(tried.change)])
        self._base.set_result(key, WorkResult(WorkerOutcome.NORMAL, output, outcome, diff))

    def verdicts(self) -> Iterator[Verdict]:
        """Yield what became of each mutant that was tried."""
        for _, result in self._base.results:
            if result.worker_outcome == WorkerOutcome.NORMAL:
                line, *change = json.loads(result.diff)
                killed = result.test_outcome == TestOutcome.KILLED
                yield Verdict(line, Change(*change), result.output if killed else "")


@contextlib.contextmanager
def session(
    folder: Path, module: str, operators: tuple[str, ...], tests: str, *, fresh: bool
) -> Iterator[Session]:
    """Yield what is known of a module's mutants as its text is now; nothing if `fresh`."""
    text = (ROOT / module).read_text()
    state = hashlib.sha256(repr((text, operators)).encode()).hexdigest()[:12]
    name = module.removesuffix(".py").replace("/", ".")
    path = folder / f"{name}-{state}.sqlite"
    for old in folder.glob(f"{name}-*.sqlite"):
        if fresh or old != path:
            old.unlink()
    made = not path.exists()
    with use_db(path) as base:
        if made:
            _fill(base, module, text, operators)
        yield Session(module, tests, base)


def _fill(base: WorkDB, module: str, text: str, operators: tuple[str, ...]) -> None:
    """Have Cosmic Ray find all mutants, and skip those that are not tried."""
    with contextlib.chdir(ROOT):
        init([Path(module)], base, {})
    quiet = quiet_spans(text)
    skipped = WorkResult(WorkerOutcome.SKIPPED)
    others = [
        item.job_id for item in base.work_items if not chosen(item.mutations[0], operators, quiet)
    ]
    base.set_multiple_results(others, skipped)
