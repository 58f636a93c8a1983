"""Decide who has to act on a failed test: the keepers of the product, of the lab, or of this
harness.

Blame follows the exception and the exceptions that caused it. If one of them `decides`, it does:
the product or the boundary died, and a lost link may follow from that. Otherwise a LabError does: a
test that fails because the link to its host was lost is booked for the lab, whatever it raised in
the end.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

from harness.errors import HilError, LabError, ProductError


class Blame(enum.StrEnum):
    """The part that is to blame, by its name in reports."""

    PRODUCT = "product"
    LAB = "lab"
    HARNESS = "harness"


#: The exception that pytest.raises, pytest.fail and a fixed strict known defect raise. It is
#: pytest's own and no subclass of AssertionError.
_ASSERTING = ("Failed",)
#: How a message of pytest-timeout begins. It blames the harness, whose waits have deadlines.
_TIMEOUT = "Timeout ("

#: Exit status of a run, by blame; the first that applies counts. 2 to 5 are pytest's own.
EXIT_STATUS = {Blame.PRODUCT: 1, Blame.HARNESS: 10, Blame.LAB: 11}


def blame(problem: BaseException) -> Blame:
    """Return the part that a test's exception blames."""
    for one in causes(problem):
        if isinstance(one, HilError) and one.decides:
            return Blame.PRODUCT if isinstance(one, ProductError) else Blame.HARNESS
    if any(isinstance(one, LabError) for one in causes(problem)):
        return Blame.LAB
    if isinstance(problem, BaseExceptionGroup):
        kinds = {blame(one) for one in problem.exceptions}
        return next(kind for kind in EXIT_STATUS if kind in kinds)
    if isinstance(problem, (ProductError, AssertionError)):
        return Blame.PRODUCT
    if type(problem).__name__ in _ASSERTING and not str(problem).startswith(_TIMEOUT):
        return Blame.PRODUCT
    return Blame.HARNESS


def exit_status(blamed: Iterable[Blame]) -> int:
    """Return the exit status of a run with these failures; 0 without any."""
    kinds = set(blamed)
    return next((status for kind, status in EXIT_STATUS.items() if kind in kinds), 0)


def causes(problem: BaseException) -> Iterator[BaseException]:
    """Yield the exception, and the exceptions that it was raised from or while handling."""
    seen: BaseException | None = problem
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
