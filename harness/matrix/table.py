"""Read finished runs as one table: a row for each behaviour, a column for each stack.

The latest result of each test on a stack counts. What does not get into the table is told.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.matrix.cell import Cell, CellKind, Told
from harness.report import behaviours, tested_stack
from harness.report.behaviours import Behaviour
from harness.report.run import load
from harness.report.tested_stack import TestedStack, lab_of, sole_stack, stack_of

#: The group of behaviours that runs name and the catalogue does not have.
UNKNOWN_GROUP = "behaviours that the catalogue does not have"


@dataclass(frozen=True)
class ReadRun:
    """The result.json of a run's folder, and when it started, in seconds since 1970."""

    folder: Path
    body: Mapping[str, Any]
    started: float


@dataclass
class Column:
    """A stack in one lab. Tests of other labs' hosts are not mixed: the hardware is another."""

    stack: TestedStack
    lab: str
    label: str = ""
    #: The runs that have results of it, the earliest first.
    runs: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.stack}, lab {self.lab}"


@dataclass(frozen=True)
class MatrixRow:
    """A behaviour, and the verdict on it for each column."""

    behaviour: Behaviour
    cells: tuple[Cell, ...]

    @property
    def differs(self) -> bool:
        return len({cell.words for cell in self.cells}) > 1


@dataclass(frozen=True)
class Table:
    """All of it. `notes` say what was left out, or is to be known; `incomplete` that a run was left
    out, or did not end as it should."""

    columns: tuple[Column, ...]
    rows: tuple[MatrixRow, ...]
    notes: tuple[str, ...]
    incomplete: bool

    def counts(self, column: int) -> dict[CellKind, int]:
        """Return how many behaviours have each verdict in a column, the worst first."""
        found = Counter(row.cells[column].kind for row in self.rows)
        return {kind: found[kind] for kind in CellKind if found[kind]}

    def groups(self, differing: bool) -> list[tuple[str, list[MatrixRow]]]:
        """Return the rows by group, each with its title; only those that differ if asked."""
        shown = [row for row in self.rows if row.differs or not differing]
        found: dict[str, list[MatrixRow]] = {}
        for row in shown:
            one = row.behaviour
            title = f"{one.group}: {one.feature}" if one.group else one.feature
            found.setdefault(title, []).append(row)
        return list(found.items())

    @property
    def bad(self) -> bool:
        """Return whether the table is no success, as a gate: a behaviour failed, or was not run
        because its host was given up; nothing ran on a stack; or it is incomplete."""
        kinds = {cell.kind for row in self.rows for cell in row.cells}
        silent = any(
            not any(row.cells[at].kind.told for row in self.rows) for at in range(len(self.columns))
        )
        return (
            self.incomplete
            or silent
            or CellKind.GIVEN_UP in kinds
            or any(kind.failed for kind in kinds)
        )


def read(folders: Iterable[Path]) -> Table:
    """Return the table of these runs' folders. A run that has not ended, or whose result is
    damaged, is left out. Raises HarnessError when a folder is no run's, and when none is left."""
    runs, notes = [], []
    for folder in dict.fromkeys(one.resolve() for one in folders):
        if not ((folder / "allure-results").is_dir() or (folder / "result.json").exists()):
            raise HarnessError(
                f"{folder} is no run's folder", fix="name folders of runs: out/<run-id>"
            )
        try:
            body = load(folder)
        except HarnessError as problem:
            ended = (folder / "result.json").exists()
            why = problem.message if ended else "it did not end, or has not ended yet"
            notes.append(f"{folder.name} is left out: {why}")
            continue
        # Runs of older versions of the project do not say when they started.
        started = body.get("started") or (folder / "result.json").stat().st_mtime
        runs.append(ReadRun(folder, body, started))
    if not runs:
        raise HarnessError(
            "\n".join(["no run is left to show", *notes]),
            fix="name at least one run that has ended: `hil runs list` shows them",
        )
    incomplete = bool(notes)
    runs.sort(key=lambda run: (run.started, run.folder.name))
    return _Maker(notes, incomplete).table(runs)


class _Maker:
    """The results while they are collected."""

    def __init__(self, notes: list[str], incomplete: bool) -> None:
        self.notes, self.incomplete = notes, incomplete
        self.columns: dict[tuple[TestedStack, str], Column] = {}
        #: What each test said on each stack, and the behaviours that it carries.
        self.latest: dict[tuple[TestedStack, str], dict[str, tuple[Told, tuple[str, ...]]]] = {}

    def table(self, runs: Sequence[ReadRun]) -> Table:
        for run in runs:
            self._add(run)
        columns = sorted(
            self.columns.values(),
            key=lambda one: ([part.order for part in one.stack.parts], one.lab),
        )
        for label, column in zip(_labels(), columns, strict=False):
            column.label = label
        return Table(tuple(columns), tuple(self._rows(columns)), tuple(self.notes), self.incomplete)

    def _add(self, run: ReadRun) -> None:
        name, broken = run.folder.name, run.body.get("broken")
        if broken:
            self.incomplete = True
            self.notes.append(f"{name} ended early ({broken}): tests are missing")
        if not run.body["tests"]:
            self.incomplete = True
            self.notes.append(f"{name} is left out: no test ran")
            return
        lab, sole = lab_of(run.body), sole_stack(run.body)
        uncovered, repeated, unplaced = 0, Counter[str](), []
        unknown: dict[str, None] = {}
        for test in run.body["tests"]:
            on = stack_of(run.body, test, sole)
            if on is None:
                unplaced.append(test["id"])
                continue
            column = self.columns.setdefault((on, lab), Column(on, lab))
            unknown |= dict.fromkeys(on.unknown)
            if run.folder not in column.runs:
                column.runs.append(run.folder)
            if not test["covers"]:
                uncovered += 1
                continue
            told = self.latest.setdefault((on, lab), {})
            if test["id"] in told:
                repeated[told[test["id"]][0].run.name] += 1
            told[test["id"]] = (Told.of(test, run.folder), tuple(test["covers"]))
        if unplaced:
            self.incomplete = True
            self.notes.append(
                f"{name}: {_tests(len(unplaced))} left out, because the run had several stacks and "
                f"does not say on which {'they' if len(unplaced) > 1 else 'it'} ran: "
                f"{_some(unplaced)}"
            )
        if unknown:
            self.notes.append(f"{name} does not say which {' and '.join(unknown)} it had")
        if uncovered:
            self.notes.append(f"{name}: {_tests(uncovered)} left out that carry no behaviour")
        for earlier, count in repeated.items():
            self.notes.append(
                f"{name} repeats {_tests(count)} of {earlier} on the same stack: the later results "
                "count"
            )

    def _rows(self, columns: Sequence[Column]) -> list[MatrixRow]:
        cells: dict[str, dict[int, list[Told]]] = {}
        for at, column in enumerate(columns):
            for told, covers in self.latest.get((column.stack, column.lab), {}).values():
                for behaviour in dict.fromkeys(covers):
                    cells.setdefault(behaviour, {}).setdefault(at, []).append(told)
        known = behaviours.catalogue()
        strange = {
            name: Behaviour(name, "", "", UNKNOWN_GROUP) for name in sorted(cells.keys() - known)
        }
        return [
            MatrixRow(
                behaviour,
                tuple(Cell.of(cells.get(name, {}).get(at, [])) for at in range(len(columns))),
            )
            for name, behaviour in (known | strange).items()
        ]


def _labels() -> Iterable[str]:
    """Yield A, B, …, Z, AA, AB, …"""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for length in itertools.count(1):
        for label in itertools.product(letters, repeat=length):
            yield "".join(label)


def titles(columns: Sequence[Column]) -> list[list[str]]:
    """Return for each column the lines of its head: its label, and whatever differs between the
    columns."""
    heads = [[column.label] for column in columns]
    for at, part in enumerate(tested_stack.PARTS):
        called = tested_stack.names(column.stack.parts[at] for column in columns)
        if len(called) > 1:
            for head, column in zip(heads, columns, strict=True):
                head.append(f"{part.removesuffix(' kernel')} {called[column.stack.parts[at]]}")
    if len({column.lab for column in columns}) > 1:
        for head, column in zip(heads, columns, strict=True):
            head.append(f"lab {column.lab}")
    return heads


def _tests(count: int) -> str:
    return f"{count} {'test' if count == 1 else 'tests'}"


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
