"""Read the catalogue of known upstream defects, suites/defects.yaml, and what the mark
`known_defect` says.

A test asserts the right behaviour. On versions that have the defect it is expected to fail, with
the defect's symptom.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from harness import strict_yaml
from harness.checkout import DEFECTS
from harness.errors import HarnessError
from harness.host.host import Facts
from harness.strict_yaml import Strict

#: The version proper. What a distributor or a builder adds comes after it.
_VERSION = re.compile(r"(?P<numbers>[0-9]+(\.[0-9]+)+)([-~]?rc(?P<candidate>[0-9]+))?")


class Component(StrEnum):
    """The component that has a defect."""

    QEMU = "qemu"
    HOST_KERNEL = "host-kernel"
    GUEST_KERNEL = "guest-kernel"

    @property
    def words(self) -> str:
        """Return the component's name for people."""
        return "QEMU" if self is Component.QEMU else self.replace("-", " ")

    def version(self, facts: Facts) -> Version | None:
        """Return the version that a host has, or None if it cannot be read: see `version_in`."""
        match self:
            case Component.QEMU:
                return version_in(facts.qemu)
            case Component.HOST_KERNEL:
                return version_in(facts.host_kernel)
            case Component.GUEST_KERNEL:
                return version_in(facts.guest_kernel)


def version_in(text: str) -> Version | None:
    """Return the version that a text begins with, such as the output of `qemu --version` or
    `uname -r`; None if it begins with no version, such as the path of a kernel.

    7.2.12-vgrace and 7.2.12+deb13-arm64 are 7.2.12; 7.3.0-rc2-next is 7.3.0rc2, which comes before
    7.3.0.
    """
    found = _VERSION.match(text)
    if found is None:
        return None
    candidate = found["candidate"]
    return Version(found["numbers"] + (f"rc{candidate}" if candidate else ""))


def _specifier(versions: str) -> str:
    try:
        SpecifierSet(versions)
    except InvalidSpecifier:
        raise PydanticCustomError("specifier", "not a specifier") from None
    return versions


_Text = Annotated[str, Field(min_length=1)]


class Affected(Strict):
    """Versions of one component."""

    component: Annotated[Component, Field(description=f"one of {', '.join(Component)}")]
    versions: Annotated[
        _Text,
        AfterValidator(_specifier),
        Field(description='a specifier as of Python packages, such as "==11.1.*" or ">=11.1,<12"'),
    ]

    def has(self, facts: Facts) -> bool:
        """Return whether a host has one of these versions; not if its version cannot be read."""
        version = self.component.version(facts)
        return version is not None and SpecifierSet(self.versions).contains(
            version, prereleases=True
        )

    def __str__(self) -> str:
        return f"{self.component.words} {self.versions}"


def _once_each(affects: tuple[Affected, ...]) -> tuple[Affected, ...]:
    names = [one.component for one in affects]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"found {', '.join(twice)} twice; allowed: each component once, with all "
            'conditions in one specifier, such as ">=11.1,<12"'
        )
    return affects


class _Entry(Strict):
    """The fields of one defect in the catalogue."""

    title: Annotated[_Text, Field(description="what is wrong, in one sentence")]
    why: Annotated[_Text, Field(description="the mechanism, where upstream's code does it")]
    affects: Annotated[
        tuple[Affected, ...],
        Field(min_length=1, description="a list of mappings of component and versions"),
        AfterValidator(_once_each),
    ]
    reproducer: Annotated[
        _Text,
        Field(description="the module of harness/reproduce that shows the defect"),
    ]


class Defect(_Entry):
    """One defect. `id` is that of the behaviour that the product does not have because of it."""

    id: str

    def concerns(self, facts: Facts) -> bool:
        """Return whether a host has the defect, by the version of each component that the defect
        affects. A version that cannot be read is assumed to have no known defects."""
        return all(one.has(facts) for one in self.affects)

    @property
    def components(self) -> str:
        """Return the components that have it, for people: `QEMU and guest kernel`."""
        return " and ".join(one.component.words for one in self.affects)

    @property
    def concerned(self) -> str:
        """Return which versions of which components have it, for people: `QEMU ==11.1.* with guest
        kernel >=7.3`."""
        return " with ".join(map(str, self.affects))

    def __str__(self) -> str:
        return f"{self.id}: {self.title} ({self.concerned})"


#: How a text about defects, each as its str(), names them.
_NAMED = re.compile(r"(?:^|; |\[XPASS\(strict\)\] )([A-Z]+-[0-9]+): ")


def named(text: str) -> list[str]:
    """Return the ids of the defects that the message of a test names which is known to meet
    them."""
    return _NAMED.findall(text)


@dataclass(frozen=True)
class KnownDefect:
    """A defect that a test is known to meet, and how that test fails because of it.

    `symptom` is a regular expression that is found in the failure's text if the defect caused the
    failure. Every test has its own. Raises HarnessError if it is not a regular expression.
    """

    defect: Defect
    symptom: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.symptom)
        except re.error as problem:
            raise HarnessError(
                f"{self.defect.id}: symptom {self.symptom!r} is not a regular expression: "
                f"{problem}",
                fix="write a part of the failure's text, with a backslash before each of "
                r"\ . [ ( { * + ? ^ $ |",
            ) from None

    def explains(self, failure: str) -> bool:
        """Return whether the defect caused a failure with this text."""
        return re.search(self.symptom, failure) is not None


def load(path: Path) -> dict[str, Defect]:
    """Read and check a catalogue; return its defects by id, in the file's order.

    Raises HarnessError that names file, line, id, field, what was found and what is allowed.
    """
    entries = strict_yaml.load(
        path,
        dict[str, _Entry],
        what="catalogue of defects",
        error=HarnessError,
        fix="correct the catalogue of defects",
        none="install the project again: it brings the catalogue",
    )
    return {name: Defect(id=name, **dict(entry)) for name, entry in entries.items()}


@cache
def catalogue() -> Mapping[str, Defect]:
    """Return all known defects by id. Raises HarnessError as `load` does."""
    return MappingProxyType(load(DEFECTS))


def defect(id: str) -> Defect:
    """Return a defect by its id. Raises HarnessError for an id that the catalogue does not have."""
    known = catalogue()
    if id not in known:
        raise HarnessError(
            f"no defect {id} in {DEFECTS}", fix=f"choose {', '.join(known)}, or add {id} there"
        )
    return known[id]


def known_defect(id: str, *, symptom: str) -> KnownDefect:
    """Return the known defect of `@pytest.mark.known_defect(id, symptom=…)`.

    Raises HarnessError for an unknown id, or a symptom that is not a regular expression.
    """
    return KnownDefect(defect(id), symptom)
