"""Read the catalogue of behaviours, and which tests carry which behaviour. Marks are read from the
suites' source, so that no lab is needed."""

from __future__ import annotations

import ast
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

from pydantic import Field

from harness import strict_yaml
from harness.checkout import BEHAVIOURS
from harness.errors import HarnessError
from harness.report import runs
from harness.report.defects import Defect, known_defect
from harness.report.run import FAILED, FIXED, KNOWN, NOT_RUN, PASSED, SKIPPED, load
from harness.strict_yaml import Strict


@dataclass(frozen=True)
class Behaviour:
    """One behaviour of the catalogue. `group` is its id's prefix (VEQ), `feature` the group's
    title."""

    id: str
    text: str
    group: str
    feature: str


class _Group(Strict):
    title: Annotated[str, Field(description="what the group is about")]
    behaviours: Annotated[
        dict[str, str], Field(description="a mapping of ids, such as VEQ-01, to sentences")
    ]


def catalogue() -> dict[str, Behaviour]:
    """Return all behaviours by id, in the catalogue's order. Raises HarnessError that names file,
    line, field, what was found and what is allowed."""
    groups = strict_yaml.load(
        BEHAVIOURS,
        dict[str, _Group],
        what="catalogue of behaviours",
        error=HarnessError,
        fix="correct the catalogue of behaviours",
        none="install the project again: it brings the catalogue",
    )
    return {
        name: Behaviour(name, text, group, body.title)
        for group, body in groups.items()
        for name, text in body.behaviours.items()
    }


@dataclass(frozen=True)
class Carrier:
    """A test, the behaviours its `covers` marks name, and the defects it is known to meet."""

    test: str
    ids: tuple[str, ...]
    defects: tuple[Defect, ...] = ()


def carriers(suites: Path, root: Path) -> Iterator[Carrier]:
    """Yield the tests under a folder, with the names that they have for pytest in `root`. Raises
    HarnessError for an id that the catalogue does not have, for a mark that cannot be read, and for
    a file that is not Python."""
    known = catalogue()
    for path in sorted(_test_files(suites)):
        for node in ast.walk(_parsed(path)):
            if not (isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
                continue
            ids = tuple(name for deco in node.decorator_list for name in _covered(deco))
            defects = tuple(one for deco in node.decorator_list for one in _defects(deco, path))
            unknown = [name for name in (*ids, *(one.id for one in defects)) if name not in known]
            if unknown:
                raise HarnessError(
                    f"{path}:{node.lineno}: {node.name} covers {', '.join(unknown)}, which is not "
                    "in the catalogue of behaviours",
                    fix=f"use an id of {BEHAVIOURS}, or add it there",
                )
            yield Carrier(f"{path.relative_to(root)}::{node.name}", ids, defects)


def _parsed(path: Path) -> ast.AST:
    try:
        # Bytes: a file of Python says itself in which encoding it is.
        return ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError) as problem:
        line = getattr(problem, "lineno", None)
        why = getattr(problem, "msg", None) or getattr(problem, "strerror", None) or str(problem)
        raise HarnessError(
            f"{path}{f':{line}' if line else ''}: cannot be read as Python: {why}",
            fix=f"correct the file: `pytest --collect-only {shlex.quote(str(path))}` reads it too",
        ) from None


#: Where pytest looks, by its defaults: in files of these names (python_files), and in no folder of
#: those (norecursedirs).
_FILES = ("test_*.py", "*_test.py")
_NO_FOLDERS = ("*.egg", ".*", "_darcs", "build", "CVS", "dist", "node_modules", "venv", "{arch}")


def _test_files(suites: Path) -> Iterator[Path]:
    """Yield the files with tests under a folder, and none of those in which pytest does not look
    either: somebody's folder may have a virtual environment with the tests of its packages."""
    for folder, folders, files in os.walk(suites):
        folders[:] = [name for name in folders if not _matches(name, _NO_FOLDERS)]
        folders[:] = [name for name in folders if not Path(folder, name, "pyvenv.cfg").exists()]
        yield from (Path(folder, name) for name in files if _matches(name, _FILES))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _covered(decorator: ast.expr) -> Iterator[str]:
    """Yield the ids of a `@pytest.mark.covers("A", "B")`; none of another decorator."""
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.covers":
        for argument in decorator.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


def _defects(decorator: ast.expr, path: Path) -> Iterator[Defect]:
    """Yield the defect of a `@pytest.mark.known_defect("A", symptom="…")`; none of another
    decorator."""
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == (
        "pytest.mark.known_defect"
    ):
        place = f"{path}:{decorator.lineno}: known_defect"
        try:
            args = [ast.literal_eval(argument) for argument in decorator.args]
            named = {one.arg or "": ast.literal_eval(one.value) for one in decorator.keywords}
            yield known_defect(*args, **named).defect
        except HarnessError as problem:
            raise HarnessError(f"{place}: {problem.message}", fix=problem.fix) from None
        except (TypeError, ValueError) as problem:
            raise HarnessError(
                f"{place}: {problem}", fix="write the id and the symptom as literal strings"
            ) from None


@dataclass
class Row:
    """A behaviour, its tests, the known defects that break it, and, for each lab that ran the
    tests, the worst of their latest outcomes."""

    behaviour: Behaviour
    tests: list[str] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)


_WORST_FIRST = (FAILED, FIXED, NOT_RUN, SKIPPED, KNOWN, PASSED)


def coverage(suites: Path, root: Path, out: Path) -> list[Row]:
    """Return a row for each behaviour. `root` is the folder from which pytest runs the tests under
    `suites`. `out` is the folder with the folders of runs; it need not exist. Raises HarnessError
    for a damaged result of a run."""
    rows = {name: Row(behaviour) for name, behaviour in catalogue().items()}
    standing = set()
    for carrier in carriers(suites, root):
        standing.add(carrier.test)
        for name in carrier.ids:
            rows[name].tests.append(carrier.test)
        for defect in carrier.defects:
            if defect not in rows[defect.id].defects:
                rows[defect.id].defects.append(defect)
    # By function: results of tests and parameters that do not exist any more are left out.
    latest: dict[tuple[str, str], list[tuple[list[str], str]]] = {}
    for folder in runs.ended(out):
        run = load(folder)
        ran: dict[tuple[str, str], list[tuple[list[str], str]]] = {}
        for test in run["tests"]:
            file, *_, function = test["id"].partition("[")[0].split("::")
            key = (run.get("lab", ""), f"{file}::{function}")  # the class, if any, is left out
            ran.setdefault(key, []).append((test["covers"], test["outcome"]))
        latest |= ran
    for (lab, function), outcomes in latest.items():
        for ids, outcome in outcomes if function in standing else ():
            for row in (rows[name] for name in ids if name in rows):
                seen = (outcome, row.outcomes.get(lab, outcome))
                row.outcomes[lab] = min(seen, key=_rank)
    return list(rows.values())


def _rank(outcome: str) -> int:
    """Return the place of an outcome, the worst first. One that only another program knows is shown
    before all others."""
    return _WORST_FIRST.index(outcome) if outcome in _WORST_FIRST else -1
