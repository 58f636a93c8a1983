"""Measure whether the suites notice small faults of the stack.

For each mutant the tests of the behaviours that must notice it run first, then the rest of the
suites, until one fails. It is `killed` if the failure blames the product; a failure that blames the
lab or the harness is a fault of the harness. In the end the tests that killed mutants run once on
the stack as it is: one that fails there too has killed nothing.

After Ctrl-C, or whatever else stopped it, the same command goes on: a mutant that has a verdict for
these suites, this harness and this stack is not tried again. The exit status is 0 if all mutants
that can be reached were killed and rightly blamed, 1 if not, and 2 for a wrong call.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import filelock

from harness.artifacts.store import Store
from harness.checkout import OUT, ROOT, SUITES
from harness.errors import HarnessError, HilError
from harness.progress import Progress
from harness.report.requirements import Requirement, requirements
from tests.mutants.book import Book, state, summary
from tests.mutants.catalogue import HOST, LAB, Choice, Mutant, mutants
from tests.mutants.trial import Outcome, Verdict, controlled, tried
from tests.mutants.workshop import Workshop

#: What a mutant takes, in seconds: only progress depends on it.
_EXPECTED = 90.0


@dataclass(frozen=True)
class Bench:
    """What all mutants are tried with. `rest` says whether the rest of the suites is, too."""

    workshop: Workshop
    tests: Sequence[Requirement]
    folder: Path
    progress: Progress
    rest: bool

    def verdict_on(self, mutant: Mutant, called: str) -> Verdict:
        """Make a mutant and try it. A mutant that cannot be made is broken."""
        if mutant.unreachable:
            return Verdict(Outcome.UNREACHABLE, why=mutant.unreachable)
        runs = self.folder / "runs" / f"{mutant.kind}-{mutant.name}"
        try:
            with (
                self.workshop.made(mutant) as subject,
                self.progress.step(called, _EXPECTED) as advance,
            ):
                return tried(mutant, self.tests, subject, runs, advance, rest=self.rest)
        except HilError as problem:
            return Verdict(Outcome.BROKEN, why=problem.message)


def confirmed(verdicts: dict[str, Verdict], folder: Path, progress: Progress) -> dict[str, Verdict]:
    """Return the verdicts, of which one is broken if its test fails on the stack as it is."""
    killers = {one.test for one in verdicts.values() if one.test}
    with progress.step(
        f"control: {len(killers)} tests without mutants", 20.0 * len(killers)
    ) as say:
        failing = controlled(killers, folder / "runs" / "control", say)
    return {
        name: replace(
            one, outcome=Outcome.BROKEN, why=f"fails without it, too: {failing[one.test]}"
        )
        if one.test in failing
        else one
        for name, one in verdicts.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="PART", help="mutants whose name has this")
    parser.add_argument(
        "--sample", action="store_true", help="a few, and only the tests of their behaviours"
    )
    parser.add_argument("--fresh", action="store_true", help="try again what has a verdict")
    parser.add_argument("--list", action="store_true", help="print the names, and end")
    parser.add_argument(
        "--check", action="store_true", help="see whether each mutant fits its source, and end"
    )
    parser.add_argument("--out", type=Path, default=OUT / "mutants", metavar="FOLDER")
    options = parser.parse_args(argv)
    try:
        return _main(options)
    except HilError as problem:
        print(f"mutants: {problem}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace) -> int:
    chosen = Choice(options.only, options.sample).of(mutants())
    if options.list:
        for one in chosen:
            print(f"{one.id}: {one.breaks}")
        return 0
    folder = options.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        return _in(folder, chosen, options)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other calls out of a folder. Raises HarnessError while another one works there."""
    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise HarnessError(
            f"another call works in {folder}",
            fix="wait until it has ended, or name another folder with --out",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _in(folder: Path, chosen: Sequence[Mutant], options: argparse.Namespace) -> int:
    progress = Progress()
    workshop = Workshop(folder, Store(), progress)
    _check(chosen, workshop)
    if options.check:
        print(f"{len(chosen)} mutants fit their sources")
        return 0
    book = Book(folder, state(str(workshop.linux)))
    tests = requirements(SUITES, LAB, HOST)
    bench = Bench(workshop, tests, folder, progress, rest=not options.sample)
    verdicts: dict[str, Verdict] = {}
    for number, one in enumerate(chosen, start=1):
        called = f"{number} of {len(chosen)}: {one.id}"
        verdict = None if options.fresh else book.known(one)
        if verdict is None:
            started = time.monotonic()
            verdict = bench.verdict_on(one, called)
            book.write(one, verdict)
            called += f" ({time.monotonic() - started:.0f} s)"
        verdicts[one.id] = verdict
        print(f"{called}: {verdict.outcome}: {verdict.test or verdict.why}", flush=True)
    verdicts = confirmed(verdicts, folder, progress)
    for path in book.publish(chosen, verdicts):
        print(path)
    print(summary(verdicts))
    return 0 if all(one.outcome.good for one in verdicts.values()) else 1


def _check(chosen: Sequence[Mutant], workshop: Workshop) -> None:
    """Raise HarnessError for a mutant that does not fit its source."""
    tree = workshop.linux_tree() if any(one.kind.of_linux for one in chosen) else None
    for one in chosen:
        one.apply(tree if tree and one.kind.of_linux else ROOT)


if __name__ == "__main__":
    sys.exit(main())
