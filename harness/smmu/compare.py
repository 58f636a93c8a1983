"""Comparing long sequences of records: one short sentence instead of two long lists."""

from __future__ import annotations

from collections.abc import Sequence


def difference(got: Sequence[object], expected: Sequence[object]) -> str:
    """Where `got` first differs from `expected`, and in what; empty when it does not."""
    for index, (ours, theirs) in enumerate(zip(got, expected, strict=False)):
        if ours != theirs:
            return f"entry {index} of {len(expected)} is\n  {ours}\nnot\n  {theirs}"
    if len(got) != len(expected):
        more = "missing" if len(got) < len(expected) else "too many"
        longer = max(got, expected, key=len)
        first = longer[min(len(got), len(expected))]
        return (
            f"{len(got)} entries, {len(expected)} expected; "
            f"{abs(len(got) - len(expected))} {more}, from\n  {first}"
        )
    return ""
