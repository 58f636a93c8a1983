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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import filelock

from harness.artifacts.store import Store
from harness.checkout import OUT, ROOT, SUITES
from harness.errors import HarnessError, HilError
from harness.progress import Progress
from harness.report.requirements import requirements
from tests.mutants.benches import Benches, write_lab
from tests.mutants.book import Book, state, summary
from tests.mutants.catalogue import HOST, LAB, Choice, Mutant, mutants
from tests.mutants.trial import Outcome, Verdict, controlled
from tests.mutants.workshop import Workshop

#: What a mutant takes, in seconds: only progress depends on it.
_EXPECTED = 90.0


def confirmed(
    verdicts: dict[str, Verdict], folder: Path, workers: int, progress: Progress
) -> dict[str, Verdict]:
    """Return the verdicts, of which one is broken if its test fails on the stack as it is."""
    killers = {one.test for one in verdicts.values() if one.test}
    lab = write_lab(folder / "labs" / "all.yaml", range(1, workers + 1))
    options = (f"--lab={lab}", f"--numprocesses={workers}")
    with progress.step(
        f"control: {len(killers)} tests without mutants", 20.0 * len(killers) / workers
    ) as say:
        failing = controlled(killers, options, folder / "runs" / "control", say)
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
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="so many at a time")
    parser.add_argument("--out", type=Path, default=OUT / "mutants", metavar="FOLDER")
    options = parser.parse_args(argv)
    if options.workers < 1:
        parser.error(f"--workers: found {options.workers}; needed: 1 or more")
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
    workshop.tidy()
    _check(chosen, workshop)
    if options.check:
        print(f"{len(chosen)} mutants fit their sources")
        return 0
    book = Book(folder, state(str(workshop.linux)))
    known = {} if options.fresh else {one.id: book.known(one) for one in chosen}
    verdicts = {id: verdict for id, verdict in known.items() if verdict}
    for number, (id, verdict) in enumerate(verdicts.items(), start=1):
        _tell(number, len(chosen), id, verdict)
    left = [one for one in chosen if one.id not in verdicts]
    if any(one.kind.of_linux and not one.unreachable for one in left):
        workshop.build_linux()
    labs = [
        write_lab(folder / "labs" / f"{bench}.yaml", [bench])
        for bench in range(1, options.workers + 1)
    ]
    tests = requirements(SUITES, LAB, HOST)
    benches = Benches(workshop, tests, folder, labs, rest=not options.sample)
    expected = _EXPECTED * len(left) / len(labs)
    with (
        progress.step(f"try {len(left)} mutants", expected) as advance,
        contextlib.closing(benches.verdicts(left, advance)) as coming,
    ):
        for one, verdict in coming:
            book.write(one, verdict)
            verdicts[one.id] = verdict
            _tell(len(verdicts), len(chosen), one.id, verdict)
    verdicts = confirmed(verdicts, folder, options.workers, progress)
    for path in book.publish(chosen, verdicts):
        print(path)
    print(summary(verdicts))
    return 0 if all(one.outcome.good for one in verdicts.values()) else 1


def _tell(number: int, of: int, id: str, verdict: Verdict) -> None:
    took = f" ({verdict.seconds:.0f} s)" if verdict.seconds else ""
    told = verdict.test or verdict.why
    print(f"{number} of {of}: {id}{took}: {verdict.outcome}: {told}", flush=True)


def _check(chosen: Sequence[Mutant], workshop: Workshop) -> None:
    """Raise HarnessError for a mutant that does not fit its source."""
    tree = workshop.linux_tree() if any(one.kind.of_linux for one in chosen) else None
    for one in chosen:
        one.apply(tree if tree and one.kind.of_linux else ROOT)


if __name__ == "__main__":
    sys.exit(main())
