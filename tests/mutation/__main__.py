"""Measure whether the harness's own tests notice small faults of the harness.

Each mutant of a module has one operator, number or condition changed. It is killed if one of the
module's tests fails; the table of modules and tests is `[tool.mutation]` of pyproject.toml. After
Ctrl-C the same command goes on: a mutant that was killed stays so until its module changes, and one
that survived is tried again when its tests have changed. The exit status is 0 if every module has
the score that is asked for and what was argued of survivors holds, 1 if not, 2 for a wrong call.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cosmic_ray.work_item import MutationSpec

from harness.checkout import OUT, ROOT
from harness.errors import HilError
from tests.mutation.bench import Ended, Job, Tree, digest, run, trees, without_mutant
from tests.mutation.plan import Change, Equivalent, Mutant, Plan, equivalents, mutant, plan
from tests.mutation.session import Session, Verdict, session


@dataclass
class Score:
    """What became of one module's mutants. `wrong` says which arguments do not hold."""

    module: str
    killed: int = 0
    late: int = 0
    equivalent: int = 0
    survivors: list[Verdict] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def percent(self) -> float:
        """Return how many of a hundred mutants were killed, of those that can be."""
        killed = self.killed + self.late
        every = killed + len(self.survivors)
        return 100.0 * killed / every if every else 100.0

    def good(self, least: float) -> bool:
        """Return whether the score is enough, and all arguments hold."""
        return self.percent >= least and not self.wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Run as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="PART", help="modules whose path has this")
    parser.add_argument("--fresh", action="store_true", help="try again what has a verdict")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="so many at a time")
    options = parser.parse_args(argv)
    try:
        return _main(options)
    except HilError as problem:
        print(f"mutation: {problem}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace) -> int:
    how, argued = plan(), equivalents()
    modules = how.named(options.only)
    folder = OUT / "mutation"
    folder.mkdir(parents=True, exist_ok=True)
    scores = []
    with trees(options.workers) as places:
        for module in modules:
            scores.append(
                _measured(folder, how, module, argued.get(module, ()), places, options.fresh)
            )
            print(_survivors(scores[-1]), end="", flush=True)
    for stranger in argued.keys() - how.modules.keys():
        print(f"equivalent.yaml argues of {stranger}, which is not in [tool.mutation]")
    print(table(scores))
    good = all(one.good(how.least) for one in scores) and argued.keys() <= how.modules.keys()
    return 0 if good else 1


def _measured(
    folder: Path,
    how: Plan,
    module: str,
    argued: Sequence[Equivalent],
    places: Sequence[Tree],
    fresh: bool,
) -> Score:
    """Try what is to be tried of a module, and return its score."""
    tests = how.modules[module]
    state = digest("tests/conftest.py", *tests)
    text = (ROOT / module).read_text()
    with session(folder, module, how.operators, state, fresh=fresh) as known:
        pending = [*known.pending()]
        if pending:
            print(f"{module}: {len(pending)} mutants to try", flush=True)
            started = time.monotonic()
            _try(known, pending, text, tests, places)
            print(f"{module}: tried in {time.monotonic() - started:.0f} s", flush=True)
        return judged(module, known, argued)


def _try(
    known: Session,
    pending: Sequence[tuple[str, MutationSpec]],
    text: str,
    tests: Sequence[str],
    places: Sequence[Tree],
) -> None:
    """Try mutants of a module, and write each verdict."""
    limit = without_mutant(places, known.module, tests)
    made: dict[int, tuple[str, Mutant]] = {}

    def jobs() -> Iterator[Job]:
        for key, spec in pending:
            one = mutant(spec, text)
            job = Job(known.module, one.text, tests, limit)
            made[id(job)] = (key, one)
            yield job

    def done(job: Job, ended: Ended) -> None:
        key, one = made.pop(id(job))
        known.write(key, one, ended)

    run(places, jobs(), done)


def judged(module: str, known: Session, argued: Sequence[Equivalent]) -> Score:
    """Return a module's score. What was argued must be of mutants that survived."""
    score = Score(module)
    arguments = {one.change for one in argued}
    killed: set[Change] = set()
    survived: set[Change] = set()
    for verdict in known.verdicts():
        (killed if verdict.killer else survived).add(verdict.change)
        if verdict.late:
            score.late += 1
        elif verdict.killer:
            score.killed += 1
        elif verdict.change in arguments:
            score.equivalent += 1
        else:
            score.survivors.append(verdict)
    for change in sorted(arguments - survived, key=str):
        what = "is killed" if change in killed else "does not exist"
        score.wrong.append(f"equivalent.yaml argues of a mutant that {what}: {change}")
    score.wrong += [
        f"equivalent.yaml argues twice: {change}"
        for change, times in Counter(one.change for one in argued).items()
        if times > 1
    ]
    return score


def _survivors(score: Score) -> str:
    lines = [f"  {score.module}:{one.line}: {one.change}" for one in score.survivors]
    return "".join(f"{line}\n" for line in [*lines, *(f"  {one}" for one in score.wrong)])


def table(scores: Sequence[Score]) -> str:
    """Return a line for each module: killed, survived, late, equivalent, score."""
    rows: list[tuple[str, ...]] = [("module", "killed", "late", "survived", "equivalent", "score")]
    for one in scores:
        counts = (one.killed, one.late, len(one.survivors), one.equivalent)
        rows.append((one.module, *map(str, counts), f"{one.percent:.1f} %"))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(row[1:], wide[1:], strict=True))]
        )
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
