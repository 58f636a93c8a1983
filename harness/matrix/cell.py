"""The verdict on a behaviour on one stack, from the results of its tests there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.report import defects
from harness.report.blame import Blame
from harness.report.run import FAILED, FIXED, KNOWN, NOT_RUN, PASSED, SKIPPED, brief


class CellKind(StrEnum):
    """What a cell says, the worst first."""

    PRODUCT = "failed: product"
    FIXED = "failed: known defect fixed"
    #: The results do not say whose the failure is, or have an outcome of another program.
    UNKNOWN = "failed: nobody blamed"
    HARNESS = "failed: harness"
    LAB = "failed: lab"
    #: The test's host was given up.
    GIVEN_UP = "not run: host given up"
    KNOWN = "known defect"
    PASSED = "passed"
    #: Only if all tests were skipped: the host says what it can do.
    SKIPPED = "not run: skipped"
    NOTHING = "nothing"

    @property
    def failed(self) -> bool:
        return self.value.startswith("failed")

    @property
    def told(self) -> bool:
        """Return whether the tests said anything of the product."""
        return self.failed or self in (CellKind.KNOWN, CellKind.PASSED)


_BY_OUTCOME = {
    FIXED: CellKind.FIXED,
    NOT_RUN: CellKind.GIVEN_UP,
    KNOWN: CellKind.KNOWN,
    PASSED: CellKind.PASSED,
    SKIPPED: CellKind.SKIPPED,
}
_BY_BLAME: dict[str, CellKind] = {
    Blame.PRODUCT: CellKind.PRODUCT,
    Blame.HARNESS: CellKind.HARNESS,
    Blame.LAB: CellKind.LAB,
}
_ORDER = list(CellKind)


@dataclass(frozen=True)
class Told:
    """What one test said, and the folder of its run."""

    test: str
    kind: CellKind
    message: str
    run: Path

    @classmethod
    def of(cls, test: Mapping[str, Any], run: Path) -> Told:
        """Return what a test of a result.json said."""
        outcome, blame = test["outcome"], test.get("blame", "")
        by_blame = _BY_BLAME.get(blame, CellKind.UNKNOWN) if outcome == FAILED else CellKind.UNKNOWN
        return cls(
            test["id"], _BY_OUTCOME.get(outcome, by_blame), test.get("message", "") or "", run
        )

    @property
    def reason(self) -> str:
        """Return a line that says why the test did not pass."""
        return brief(self.message)


@dataclass(frozen=True)
class Cell:
    """The worst of what the tests of a behaviour said on one stack. `told` is what each said, the
    worst first."""

    told: tuple[Told, ...] = ()

    @classmethod
    def of(cls, told: list[Told]) -> Cell:
        return cls(tuple(sorted(told, key=lambda one: _ORDER.index(one.kind))))

    @property
    def kind(self) -> CellKind:
        return self.told[0].kind if self.told else CellKind.NOTHING

    @property
    def defects(self) -> tuple[str, ...]:
        """Return the ids of the defects that the tests with this verdict are known to meet."""
        if self.kind not in (CellKind.KNOWN, CellKind.FIXED):
            return ()
        found = [name for one in self._worst for name in defects.named(one.message)]
        return tuple(dict.fromkeys(found))

    @property
    def words(self) -> str:
        """Return what the cell says. Two cells that say the same do not differ."""
        if self.kind is CellKind.NOTHING:
            return ""
        said = " ".join((self.kind, *self.defects))
        not_run = sum(one.kind in (CellKind.SKIPPED, CellKind.GIVEN_UP) for one in self.told)
        return f"{said}, {not_run} of {len(self.told)} not run" if self._partly else said

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return why, for each reason that a test with this verdict has, once."""
        if self.kind is CellKind.PASSED:
            return ()
        return tuple(dict.fromkeys(one.reason for one in self._worst if one.reason))

    @property
    def run(self) -> Path | None:
        """Return the folder of the run that decided it."""
        return self.told[0].run if self.told else None

    @property
    def _worst(self) -> list[Told]:
        return [one for one in self.told if one.kind is self.kind]

    @property
    def _partly(self) -> bool:
        """Return whether some tests were not run, and others decided the verdict."""
        return self.kind in (CellKind.PASSED, CellKind.KNOWN) and any(
            one.kind is CellKind.SKIPPED for one in self.told
        )
