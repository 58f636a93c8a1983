"""Read the catalogue of mutants: tests/mutants/KIND/NAME.yaml, a file for each.

breaks         what is wrong, in one sentence
behaviours     the ids of suites/behaviours.yaml that must notice
how            what a test sees
edits          a list of: the file, a text that is in it once, and the text in its place
unreachable    why no test of this project can notice it, if none can
sample         true for one of the few that a nightly run tries
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from harness import strict_yaml
from harness.checkout import BEHAVIOURS, name_of
from harness.errors import HarnessError
from harness.report import behaviours
from harness.strict_yaml import Strict

MUTANTS = Path(__file__).resolve().parent
LAB = MUTANTS / "lab.yaml"
#: The host of that lab that has all that the others have.
HOST = "mutant-cmdqv"


class Kind(StrEnum):
    """What a mutant breaks, by the name of its folder."""

    HOST_KERNEL = "host-kernel"
    GUEST_KERNEL = "guest-kernel"
    #: What passes the boundary, as if the kernel sent other records.
    BOUNDARY = "boundary"
    #: What QEMU is told, or asks the kernel for, as if it were another QEMU.
    QEMU = "qemu"
    SILICON = "silicon"

    @property
    def of_linux(self) -> bool:
        """Return whether its files are those of Linux. The others' are those of this project."""
        return self in (Kind.HOST_KERNEL, Kind.GUEST_KERNEL)


_Text = Annotated[str, Field(min_length=1)]


class Edit(Strict):
    """One change of one file."""

    file: Annotated[_Text, Field(description="the path of a file in its source tree")]
    find: Annotated[_Text, Field(description="a text that the file has once")]
    replace: Annotated[str, Field(description="the text in its place")]

    def apply(self, text: str) -> str:
        """Return the changed text of the file. Raises HarnessError unless it has `find` once."""
        times = text.count(self.find)
        if times != 1:
            raise HarnessError(
                f"{self.file} has what the mutant replaces {times} times, not once: "
                f"{self.find.strip().splitlines()[0].strip()!r}",
                fix="choose another text in the mutant's file: the source has changed",
            )
        return text.replace(self.find, self.replace)


class _Entry(Strict):
    """The fields of a mutant's file."""

    breaks: Annotated[_Text, Field(description="what is wrong, in one sentence")]
    behaviours: Annotated[
        tuple[str, ...], Field(min_length=1, description="a list of ids of behaviours")
    ]
    how: Annotated[_Text, Field(description="what a test sees")]
    edits: Annotated[
        tuple[Edit, ...], Field(min_length=1, description="a list of file, find and replace")
    ]
    unreachable: Annotated[str, Field(description="why no test can notice it")] = ""
    sample: Annotated[bool, Field(description="true or false")] = False


class Mutant(_Entry):
    """One mutant. `digest` is that of its file."""

    kind: Kind
    name: str
    digest: str

    @property
    def id(self) -> str:
        """Return the mutant's name for people and commands: KIND/NAME."""
        return f"{self.kind}/{self.name}"

    def apply(self, tree: Path) -> dict[Path, str]:
        """Return the changed content of files of a source tree, by their paths. Raises HarnessError
        if the tree does not have a file, or not what is to be replaced."""
        changed: dict[Path, str] = {}
        for edit in self.edits:
            path = tree / edit.file
            try:
                text = changed.get(path) or path.read_text()
            except OSError as problem:
                raise HarnessError(f"{self.id}: {path}: {problem.strerror}") from None
            try:
                changed[path] = edit.apply(text)
            except HarnessError as problem:
                raise HarnessError(f"{self.id}: {problem.message}", fix=problem.fix) from None
        return changed


@cache
def _behaviours() -> frozenset[str]:
    return frozenset(behaviours.catalogue())


def load(path: Path) -> Mutant:
    """Read one file of the catalogue. Raises HarnessError that names file, line and field."""
    entry = strict_yaml.load(
        path,
        _Entry,
        what="mutant",
        error=HarnessError,
        fix="correct the mutant's file",
        none="name a file of tests/mutants",
    )
    unknown = [one for one in entry.behaviours if one not in _behaviours()]
    if unknown:
        raise HarnessError(
            f"{path}: behaviours: found {', '.join(unknown)}; allowed: ids of {name_of(BEHAVIOURS)}"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Mutant(kind=Kind(path.parent.name), name=path.stem, digest=digest, **dict(entry))


def mutants() -> list[Mutant]:
    """Return all mutants, those of one kind together, so that kernels that differ by one file are
    built one after the other."""
    return [load(path) for kind in Kind for path in sorted((MUTANTS / kind).glob("*.yaml"))]


@dataclass(frozen=True)
class Choice:
    """Which mutants a call is for: those whose id contains `only`, or those of the sample."""

    only: str = ""
    sample: bool = False

    def of(self, every: list[Mutant]) -> list[Mutant]:
        """Return the chosen ones. Raises HarnessError if there are none."""
        found = [one for one in every if self.only in one.id and (one.sample or not self.sample)]
        if not found:
            raise HarnessError(
                f"no mutant is named {self.only!r}",
                fix="call `python -m tests.mutants --list`, and give a part of a name",
            )
        return found
