"""The first difference of two sequences is found and described in a short text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.expectation import difference

LISTS = st.lists(st.integers(0, 3), max_size=6)


@given(LISTS, LISTS)
def test_empty_exactly_when_equal(got: list[int], expected: list[int]) -> None:
    assert (difference(got, expected) == "") == (got == expected)


def test_says_where() -> None:
    assert "entry 1 of 2" in difference([1, 2], [1, 3])
    assert "1 missing" in difference([1], [1, 3])
    assert "2 too many" in difference([1, 2, 3], [1])
    assert len(difference(list(range(100_000)), [])) < 100
