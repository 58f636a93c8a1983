"""What is mutated, and how: `[tool.mutation]` of pyproject.toml, and the survivors that were argued
to be no faults: tests/mutation/equivalent.yaml."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_item import MutationSpec
from pydantic import Field

from harness import strict_yaml
from harness.checkout import ROOT
from harness.errors import HarnessError
from harness.strict_yaml import Strict

PYPROJECT = ROOT / "pyproject.toml"
EQUIVALENT = Path(__file__).resolve().with_name("equivalent.yaml")

_Text = Annotated[str, Field(min_length=1)]


class Plan(Strict):
    """`[tool.mutation]` of pyproject.toml."""

    least: Annotated[float, Field(ge=0, le=100, description="the score that is enough, in %")]
    operators: Annotated[
        tuple[_Text, ...], Field(min_length=1, description="names of Cosmic Ray's operators")
    ]
    modules: Annotated[
        dict[str, tuple[_Text, ...]],
        Field(description="the test files of each module, those that find most first"),
    ]

    def named(self, part: str) -> dict[str, tuple[str, ...]]:
        """Return the modules whose path has `part`, with their test files. Raises HarnessError if
        there is none."""
        found = {name: tests for name, tests in self.modules.items() if part in name}
        if not found:
            raise HarnessError(
                f"no module has {part!r} in its path", fix=f"choose from {', '.join(self.modules)}"
            )
        return found


class Equivalent(Strict):
    """A mutant that no test can kill. `within` is the function or class that has the line, if one
    has it; `was` and `now` are the line before and after, without indentation."""

    within: Annotated[str, Field(description="the name of a function or class")] = ""
    was: Annotated[_Text, Field(description="the line of the module")]
    now: Annotated[str, Field(description="the same line of the mutant")]
    why: Annotated[_Text, Field(description="why nobody can tell the two apart")]

    @property
    def change(self) -> Change:
        return Change(self.within, self.was.strip(), self.now.strip())


@dataclass(frozen=True)
class Change:
    """What a mutant changes: the lines that differ, joined and without indentation."""

    within: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"{self.within or 'the module'}: {self.was!r} -> {self.now!r}"


@dataclass(frozen=True)
class Mutant:
    """One mutant of a module: the first line that differs, what changed, and the mutant's whole
    text."""

    line: int
    change: Change
    text: str


def plan(path: Path = PYPROJECT) -> Plan:
    """Read the plan. Raises HarnessError for one that is wrong, or names what is not there."""
    with path.open("rb") as file:
        read = Plan.model_validate(tomllib.load(file)["tool"]["mutation"])
    files = {*read.modules, *(test for tests in read.modules.values() for test in tests)}
    missing = sorted(name for name in files if not (path.parent / name).is_file())
    if missing:
        raise HarnessError(f"[tool.mutation] names what is not there: {', '.join(missing)}")
    return read


def equivalents(path: Path = EQUIVALENT) -> Mapping[str, tuple[Equivalent, ...]]:
    """Read what was argued, by module. Raises HarnessError for a wrong file."""
    return strict_yaml.load(
        path,
        dict[str, tuple[Equivalent, ...]],
        what="the file of equivalent mutants",
        error=HarnessError,
        fix="write it as docs/mutation.md says",
        none="it is a file of this checkout",
    )


def mutant(spec: MutationSpec, text: str) -> Mutant:
    """Make a mutant of a module's text. Raises ValueError if the operator does not apply."""
    operator = get_operator(spec.operator_name)(**spec.operator_args)
    mutated = mutate_code(text, operator, spec.occurrence)
    if mutated is None:
        raise ValueError(f"{spec.operator_name} has no occurrence {spec.occurrence}")
    old, new = text.splitlines(), mutated.splitlines()
    same = _common(old, new)
    # What the beginning has in common is no part of the end.
    end = _common(old[same:][::-1], new[same:][::-1])
    was, now = (lines[same : len(lines) - end] for lines in (old, new))
    change = Change(spec.definition_name or "", _joined(was), _joined(now))
    return Mutant(same + 1, change, mutated)


def _common(one: list[str], other: list[str]) -> int:
    """Return with how many equal lines two texts begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines).strip()


def chosen(spec: MutationSpec, operators: tuple[str, ...], quiet: list[Span]) -> bool:
    """Return whether a mutation is one that is tried: by an operator of the plan, and not in a
    place where it means nothing (`quiet_spans`)."""
    name = spec.operator_name.partition("/")[2]
    return any(re.fullmatch(one, name) for one in operators) and (
        name == "RemoveDecorator" or not any(span.has(spec.start_pos) for span in quiet)
    )


@dataclass(frozen=True)
class Span:
    """A part of a text, from one line and column to another; lines from 1, columns from 0."""

    start: tuple[int, int]
    end: tuple[int, int]

    def has(self, place: tuple[int, int]) -> bool:
        return self.start <= place < self.end


def quiet_spans(text: str) -> list[Span]:
    """Return the parts of a module that do nothing when it runs, and which mypy checks:
    annotations, and what decorators of classes are given (`frozen=True`)."""
    return [*_quiet(ast.parse(text))]


def _quiet(tree: ast.AST) -> Iterator[Span]:
    for node in ast.walk(tree):
        match node:
            case ast.arg(annotation=ast.expr() as one) | ast.AnnAssign(annotation=one):
                yield _span(one)
            case ast.FunctionDef(returns=ast.expr() as one):
                yield _span(one)
            case ast.ClassDef(decorator_list=decorators):
                yield from map(_span, decorators)


def _span(node: ast.expr) -> Span:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return Span((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
