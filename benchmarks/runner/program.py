"""Measure what the harness takes and costs, and compare it with what it took before.

Each figure is measured several times, and its median counts. The figures, with all values and with
what they were measured on, become out/bench/TIME-COMMIT.json. They are compared with the last
record that was accepted, or else the last one that passed, on this machine. A figure that seems to
have become worse by more than 15 % is measured again before that is believed: machines are noisy.

  python -m benchmarks                          everything
  python -m benchmarks --only help,chain        some benchmarks, or figures
  python -m benchmarks --accept                 it may be so: later calls are compared with this
  python -m benchmarks --base ../older          decide doubts by another checkout, measured in turn
  python -m benchmarks --quick --only decode    does the benchmark work? No figures to rely on

Exit status: 0 if all is well, 1 if a figure has regressed or was not measured, 2 for a wrong call,
130 after Ctrl-C, which leaves nothing behind. A figure beyond its limit is told, and is no failure:
limits are for a machine of two cores that has nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from benchmarks.runner import host, record, table
from benchmarks.runner.figure import Benchmark, Figure, chosen, found
from benchmarks.runner.judge import Judgement
from benchmarks.runner.measure import Meter, Values
from benchmarks.runner.record import Baseline, Machine, Measured, Outcome, Record
from harness.artifacts.store import Store
from harness.checkout import ROOT
from harness.errors import HarnessError, HilError
from harness.progress import Progress

#: The share of the data that --quick measures with.
_QUICK = 0.05


@dataclass
class Call:
    """One call: what is to be measured, what with, what it is compared with, and what came of it.
    `base` is the other checkout, if one was given."""

    benchmarks: Mapping[str, Benchmark]
    meter: Meter
    known: Baseline
    base: Path | None = None
    figures: dict[str, Measured] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def measure(self) -> None:
        """Measure everything, and what is in doubt again."""
        for name, one in self.benchmarks.items():
            if self.base is None or any(self.known.of(figure) for figure in one.figures):
                values: Values = {}
                self._rounds(name, one, {ROOT: values}, "")
                self._keep(one.figures, values)
        for name, one in self.benchmarks.items():
            doubtful = [figure for figure in one.figures if self._in_doubt(figure)]
            if doubtful and name not in self.problems:
                self._again(name, one, doubtful)

    def judgements(self) -> list[Judgement]:
        """Return what is said of each figure, in the order of the benchmarks."""
        return [self._judged(figure) for one in self.benchmarks.values() for figure in one.figures]

    @property
    def failed(self) -> bool:
        """Return whether a figure has regressed, or was not measured."""
        judged = self.judgements()
        return bool(self.problems) or any(one.regressed or one.now is None for one in judged)

    def _in_doubt(self, figure: Figure) -> bool:
        unknown = self.known.of(figure) is None and figure.compared
        return self._judged(figure).regressed or (self.base is not None and unknown)

    def _again(self, name: str, one: Benchmark, doubtful: Sequence[Figure]) -> None:
        """Measure a benchmark again, in turn with the other checkout if there is one; keep the
        figures that are in doubt."""
        ours: Values = {}
        theirs: Values = {}
        # In turn: what slows the machine down meanwhile slows both down.
        into = {ROOT: ours} if self.base is None else {self.base: theirs, ROOT: ours}
        before = dict(self.figures)
        self._rounds(name, one, into, "again" if self.base is None else "in turn")
        for figure in doubtful:
            seemed = before[figure.name].samples if self._judged(figure).regressed else ()
            if figure.name in ours:
                self._keep([figure], ours, seemed, tuple(theirs.get(figure.name, ())))

    def _rounds(self, name: str, one: Benchmark, into: Mapping[Path, Values], how: str) -> None:
        number = [*self.benchmarks].index(name) + 1
        called = f"{number} of {len(self.benchmarks)}: {name}{how and f', {how}'}"
        try:
            self.meter.rounds(name, one, called, into)
        except HilError as problem:
            self.problems[name] = str(problem)

    def _keep(
        self,
        figures: Sequence[Figure],
        values: Values,
        seemed: tuple[float, ...] = (),
        base: tuple[float, ...] = (),
    ) -> None:
        for one in figures:
            if one.name in values:
                samples = tuple(values[one.name])
                self.figures[one.name] = Measured(
                    one.unit, samples, one.better, one.limit, seemed, base
                )

    def _judged(self, figure: Figure) -> Judgement:
        measured = self.figures.get(figure.name)
        if measured is None:
            return Judgement(figure, None)
        if measured.base:
            return Judgement(figure, measured.median, statistics.median(measured.base))
        earlier = self.known.of(figure)
        return Judgement(figure, measured.median, earlier.median if earlier else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run as the command line says; return the exit status."""
    options = _parser().parse_args(argv)
    # What ends a cancelled CI job cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _main(options)
    except HilError as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 2 if isinstance(problem, HarnessError) else 1
    except KeyboardInterrupt:
        print("bench: interrupted; nothing is written", file=sys.stderr)
        return 130


def alone(file: str) -> int:
    """Run the benchmark of a module, by its file, with the options of the command line; return the
    exit status."""
    return main(["--only", Path(file).stem, *sys.argv[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", default="", metavar="NAME,NAME", help="benchmarks or figures: see --list")
    add("--accept", action="store_true", help="compare later calls with what this one measures")
    add("--against", type=Path, metavar="FILE", help="compare with this record")
    add(
        "--base",
        type=Path,
        metavar="CHECKOUT",
        help="measure what is in doubt in turn with that "
        "of another checkout of this project, and compare with it",
    )
    add(
        "--out",
        type=Path,
        default=record.FOLDER,
        metavar="FOLDER",
        help="where records are (default: out/bench)",
    )
    add("--quick", action="store_true", help="little data, one round; nothing is compared or kept")
    add("--list", action="store_true", help="print benchmarks and figures, and end")
    add(
        "--markdown",
        action="store_true",
        help="print the table of docs/benchmarks.md with the "
        "last good values of this machine, and end",
    )
    return parser


def _main(options: argparse.Namespace) -> int:
    every = found()
    wanted = chosen(every, [name for name in options.only.split(",") if name])
    if options.list:
        return _list(wanted if options.only else every)
    machine = Machine.here()
    if options.markdown:
        known = record.baseline([*record.kept(options.out)], machine)
        shown = wanted if options.only else every
        print(*table.markdown(_figures(shown), known), sep="\n")
        return 0
    progress = Progress()
    base = _checkout(options.base)
    known = Baseline({}) if options.quick else _known(options, machine)
    with _alone(), Meter.ready(progress, _QUICK if options.quick else 1.0) as meter:
        for note in known.notes:
            progress.note(f"bench: {note}")
        if machine.busy:
            progress.note(
                f"bench: this machine is busy (load {machine.load}, {machine.cores} cores): "
                "figures may be worse for that"
            )
        call, started = Call(wanted, meter, known, base), record.now()
        if any(one.lab for one in wanted.values()):
            host.build(progress)
        call.measure()
    print(*table.lines(call.judgements(), call.figures), sep="\n")
    for name, problem in call.problems.items():
        print(f"{name} was not measured: {problem}")
    if options.quick:
        print("little data, measured once: nothing is compared or kept")
        return 1 if call.problems else 0
    return _end(call, options, machine, started)


def _end(call: Call, options: argparse.Namespace, machine: Machine, started: str) -> int:
    """Write the record of a call, and tell how it ended; return the exit status."""
    regressed = [one.figure.name for one in call.judgements() if one.regressed]
    outcome = Outcome.FAILED if call.failed else Outcome.PASSED
    if options.accept:
        outcome = Outcome.ACCEPTED
    made = Record(
        *(started, record.commit(), machine, record.versions()),
        *(call.figures, call.problems, outcome),
    )
    print(made.write(options.out))
    for source in sorted({str(one.file) for one in call.known.figures.values()}):
        print(f"compared with {source}")
    if regressed:
        print(f"worse by more than 15 %: {', '.join(regressed)}")
        if not options.accept:
            print("if that is meant to be so: --accept, or make bench ACCEPT=1")
    return 1 if call.problems or (call.failed and not options.accept) else 0


def _known(options: argparse.Namespace, machine: Machine) -> Baseline:
    """Return what is compared with. Raises HarnessError for a file that does not exist."""
    if options.against is None:
        return record.baseline([*record.kept(options.out)], machine)
    if not options.against.is_file():
        raise HarnessError(f"--against: there is no file {options.against}")
    return record.baseline([options.against], machine, any_outcome=True)


def _checkout(path: Path | None) -> Path | None:
    """Return the other checkout. Raises HarnessError for what is none, and for this one."""
    if path is None:
        return None
    path = path.resolve()
    if path == ROOT:
        raise HarnessError("--base: that is this checkout", fix="name another one")
    if not (path / "harness" / "cli.py").is_file():
        raise HarnessError(f"--base: {path} is no checkout of this project")
    return path


def _figures(every: Mapping[str, Benchmark]) -> Iterator[Figure]:
    for one in every.values():
        yield from one.figures


def _list(every: Mapping[str, Benchmark]) -> int:
    for name, one in every.items():
        print(f"{name}{' (only if it is named)' if one.apart else ''}")
        for figure in one.figures:
            bound = table.limit(figure)
            print(f"  {figure.name}: {figure.what}, {figure.unit}{bound and f', {bound}'}")
    return 0


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other calls out, of other checkouts too: they would slow each other down. Raises
    HarnessError."""
    root = Store().root
    root.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(root / "bench.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise HarnessError(
            "another call measures on this machine", fix="wait for its end"
        ) from None
    try:
        yield
    finally:
        lock.release()
