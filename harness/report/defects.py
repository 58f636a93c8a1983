"""Upstream defects that tests know of: what is right is asserted, and fails on certain versions."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from harness.errors import HarnessError


@dataclass(frozen=True)
class KnownDefect:
    """Behaviour `id` fails for `reason` on the QEMU `versions`, a specifier such as `>=11.1,<12`.

    Raises HarnessError when made of a specifier that is none.
    """

    id: str
    reason: str
    versions: str

    def __post_init__(self) -> None:
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

    def __str__(self) -> str:
        return f"{self.id}: {self.reason} (QEMU {self.versions})"
