"""Upstream defects that tests know of: what is right is asserted, and fails on certain versions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from harness.errors import HarnessError


@dataclass(frozen=True)
class KnownDefect:
    """Behaviour `id` fails for `reason` on the QEMU `versions`, a specifier such as `>=11.1,<12`.

    `symptom` is a regular expression, found in what a failure says if it is this defect's; every
    test has its own. Raises HarnessError when made of a specifier or an expression that is none.
    """

    id: str
    reason: str
    versions: str
    symptom: str = field(compare=False)

    def __post_init__(self) -> None:
        try:
            re.compile(self.symptom)
        except re.error as problem:
            raise HarnessError(
                f"known_defect {self.id}: symptom {self.symptom!r} is no regular expression: "
                f"{problem}",
                fix="write what the failure says, with a backslash before such as [ and (",
            ) from None
        try:
            SpecifierSet(self.versions)
        except InvalidSpecifier:
            raise HarnessError(
                f"known_defect {self.id}: versions {self.versions!r} is no specifier",
                fix='write it as Python packages do, such as "==11.1.*" or ">=11.1,<12"',
            ) from None

    def concerns(self, qemu: str) -> bool:
        """Whether it is in this QEMU; `qemu` starts with the version, as `qemu --version` says
        it. One whose version cannot be read is taken to be without known defects."""
        try:
            version = Version(qemu.split()[0])
        except (InvalidVersion, IndexError):
            return False
        return SpecifierSet(self.versions).contains(version, prereleases=True)

    def explains(self, failure: str) -> bool:
        """Whether a failure that says this is the defect's."""
        return re.search(self.symptom, failure) is not None

    def __str__(self) -> str:
        return f"{self.id}: {self.reason} (QEMU {self.versions})"
