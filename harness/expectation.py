"""Compare what a witness saw with what was expected, and keep both for the report."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from harness.errors import ProductError

T = TypeVar("T")

#: Aligning takes as many steps as one side has entries times how often the other side repeats each.
#: Beyond this many steps, entries are compared place by place.
_MOST_STEPS = 4_000_000


class DiffersError(ProductError):
    """A witness, named by `what`, saw something else than was expected. The message says `how` they
    differ, which is the first difference by default; `actual` and `expected` are the whole
    sequences."""

    def __init__(
        self, what: str, actual: Sequence[object], expected: Sequence[object], how: str = ""
    ) -> None:
        super().__init__(f"{what}: {how or difference(actual, expected)}")
        self.what, self.actual, self.expected = what, tuple(actual), tuple(expected)


def expect(what: str, actual: Sequence[object], expected: Sequence[object]) -> None:
    """Raise DiffersError unless both sequences have the same entries in the same order."""
    if difference(actual, expected):
        raise DiffersError(what, actual, expected)


def only(what: str, found: Iterable[T]) -> T:
    """Return the only entry. Raises DiffersError unless there is exactly one: what a test finds
    missing is the product's failure."""
    entries = tuple(found)
    if len(entries) != 1:
        raise DiffersError(what, entries, (), f"{len(entries)} found, 1 expected: {entries}"[:2000])
    return entries[0]


def difference(actual: Sequence[object], expected: Sequence[object]) -> str:
    """Say in one sentence where `actual` first differs from `expected`; empty if it does not."""
    for index, (ours, theirs) in enumerate(zip(actual, expected, strict=False)):
        if ours != theirs:
            return f"entry {index} of {len(expected)} is\n  {ours}\nnot\n  {theirs}"
    if len(actual) != len(expected):
        more = "missing" if len(actual) < len(expected) else "too many"
        longer = max(actual, expected, key=len)
        first = longer[min(len(actual), len(expected))]
        return (
            f"{len(actual)} entries, {len(expected)} expected; "
            f"{abs(len(actual) - len(expected))} {more}, from\n  {first}"
        )
    return ""


#: An operation and the pieces of both sequences that it concerns, as difflib's get_opcodes returns
#: them.
Opcode = tuple[str, int, int, int, int]


def align(actual: Sequence[object], expected: Sequence[object]) -> list[Opcode]:
    """Align two sequences, so that one missing entry shows as one, and return the opcodes. The
    first and the last opcode are "equal", perhaps of empty pieces."""
    shorter = min(len(actual), len(expected))
    head = next((i for i in range(shorter) if actual[i] != expected[i]), shorter)
    tail = next(
        (i for i in range(shorter - head) if actual[-1 - i] != expected[-1 - i]), shorter - head
    )
    mine, theirs = actual[head : len(actual) - tail], expected[head : len(expected) - tail]
    middle: list[Opcode] = [("replace", 0, len(mine), 0, len(theirs))]
    if not mine or not theirs:
        middle = [("insert" if theirs else "delete", 0, len(mine), 0, len(theirs))]
    elif len(mine) * len(theirs) / len(set(theirs)) <= _MOST_STEPS:
        middle = list(difflib.SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes())
    return [
        ("equal", 0, head, 0, head),
        *((what, a + head, b + head, c + head, d + head) for what, a, b, c, d in middle),
        ("equal", len(actual) - tail, len(actual), len(expected) - tail, len(expected)),
    ]
