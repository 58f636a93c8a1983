"""What is measured: a figure, and the benchmark that measures it. Finding all that there are."""

from __future__ import annotations

import enum
import importlib
import pkgutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import benchmarks
from harness.errors import HarnessError


class Better(enum.StrEnum):
    """Which of two values of a figure is the better one."""

    SMALLER = "smaller"
    LARGER = "larger"


@dataclass(frozen=True)
class Figure:
    """Something that is measured: a name for the command line, what it is in words, its unit, the
    limit that it is to keep within, and which values are better.

    `compared` is False where a ratio to an earlier value says nothing: of a count that is mostly 0,
    and of what is not this project's. Such a figure has its limit only.
    """

    name: str
    what: str
    unit: str
    limit: float | None = None
    better: Better = Better.SMALLER
    compared: bool = True

    def exceeds(self, value: float) -> bool:
        """Return whether a value is beyond the limit, on its worse side."""
        if self.limit is None:
            return False
        return value > self.limit if self.better is Better.SMALLER else value < self.limit


#: Values as a benchmark takes them, each with its figure.
Samples = Generator[tuple[Figure, float], None, None]


@dataclass(frozen=True)
class Benchmark:
    """A function that measures some figures, once or several times in each round. A round is a
    process; there are `rounds` of them, one after the other. Each takes about `seconds`, on which
    only progress depends.

    Its argument is the share of the data to measure with: 1, or less for a quick look. It raises
    HilError if something is missing. It cleans up when it is closed or interrupted. For one that
    needs the `lab`, that is built before. One that stands `apart` runs only if it is named.
    """

    figures: tuple[Figure, ...]
    measure: Callable[[float], Samples]
    seconds: float
    rounds: int = 3
    lab: bool = False
    apart: bool = False


def found() -> Mapping[str, Benchmark]:
    """Return all benchmarks by the names of their modules. Raises HarnessError if two figures have
    the same name, or a figure that of another benchmark."""
    modules = [one.name for one in pkgutil.iter_modules(benchmarks.__path__) if one.name[0] != "_"]
    every = {}
    for name in modules:
        one = getattr(importlib.import_module(f"benchmarks.{name}"), "BENCHMARK", None)
        if isinstance(one, Benchmark):
            every[name] = one
    owners: dict[str, str] = {name: name for name in every}
    for name, one in every.items():
        for figure in one.figures:
            if owners.setdefault(figure.name, name) != name:
                raise HarnessError(
                    f"benchmarks.{name} has a figure {figure.name}, and benchmarks."
                    f"{owners[figure.name]} has that name, too",
                    fix="give one of the two another name",
                )
            owners[figure.name] = name
    return every


def chosen(every: Mapping[str, Benchmark], names: Sequence[str]) -> dict[str, Benchmark]:
    """Return the benchmarks with these names, or that have figures with these names, and of them
    only the figures that are wanted; without names all that do not stand apart. Raises HarnessError
    for a name that nothing has."""
    if not names:
        return {name: one for name, one in every.items() if not one.apart}
    known = {*every, *(figure.name for one in every.values() for figure in one.figures)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise HarnessError(
            f"no benchmark and no figure is called {', '.join(unknown)}",
            fix="see `python -m benchmarks --list`",
        )
    wanted = {}
    for name, one in every.items():
        figures = [figure for figure in one.figures if name in names or figure.name in names]
        if figures:
            wanted[name] = replace(one, figures=tuple(figures))
    return wanted
