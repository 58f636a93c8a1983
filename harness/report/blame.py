"""Who has to act on a failed test: whoever keeps the product, the lab, or this harness.

The exception decides, and what it came out of: a test that stumbles because the link to its host is
gone failed for the lab, whatever it raised in the end.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

from harness.errors import LabError, ProductError
from harness.qmp import QmpRefusedError


class Blame(enum.StrEnum):
    """As reports say it."""

    PRODUCT = "product"
    LAB = "lab"
    HARNESS = "harness"


#: What pytest.raises, pytest.fail and a strict known defect that is fixed raise: pytest's, and no
#: subclass of AssertionError.
_ASSERTING = ("Failed",)
#: pytest-timeout's words. Every wait of ours has a deadline of its own, so this is our mistake.
_TIMEOUT = "Timeout ("

#: Exit status of a run, by what went wrong; the first that applies. 2 to 5 are pytest's own.
EXIT_STATUS = {Blame.PRODUCT: 1, Blame.HARNESS: 10, Blame.LAB: 11}


def blame(problem: BaseException) -> Blame:
    """Whom a test's exception points to."""
    if any(isinstance(one, LabError) for one in causes(problem)):
        return Blame.LAB
    if isinstance(problem, BaseExceptionGroup):
        kinds = {blame(one) for one in problem.exceptions}
        return next(kind for kind in EXIT_STATUS if kind in kinds)
    if isinstance(problem, (ProductError, AssertionError, QmpRefusedError)):
        return Blame.PRODUCT
    if type(problem).__name__ in _ASSERTING and not str(problem).startswith(_TIMEOUT):
        return Blame.PRODUCT
    return Blame.HARNESS


def exit_status(blamed: Iterable[Blame]) -> int:
    """Of a run with these failures; 0 without any."""
    kinds = set(blamed)
    return next((status for kind, status in EXIT_STATUS.items() if kind in kinds), 0)


def causes(problem: BaseException) -> Iterator[BaseException]:
    """The exception and those that it was raised from."""
    seen: BaseException | None = problem
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
