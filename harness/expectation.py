"""What came beside what was expected: the failure that keeps both, for a report to show."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import ProductError
from harness.smmu.compare import difference


class DiffersError(ProductError):
    """A witness (`what`) did not see what it should have. The message names the first difference;
    `got` and `expected` are all of both."""

    def __init__(self, what: str, got: Sequence[object], expected: Sequence[object]) -> None:
        super().__init__(f"{what}: {difference(got, expected)}")
        self.what, self.got, self.expected = what, tuple(got), tuple(expected)


def expect(what: str, got: Sequence[object], expected: Sequence[object]) -> None:
    """Raise DiffersError unless both are the same, in the same order."""
    if difference(got, expected):
        raise DiffersError(what, got, expected)
