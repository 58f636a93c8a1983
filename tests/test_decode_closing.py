"""The account of an input tells each kind of damage once, and counts the rest."""

from __future__ import annotations

import pytest

from harness.smmu.decode.closing import Closing
from harness.smmu.decode.found import Damaged, Unknown


def damage(line: int, last: int = 0, what: str = "event") -> Damaged:
    return Damaged(line, last or line, what, f"{what} is cut off", None)


def test_the_first_of_a_kind_is_said_with_what_is_known() -> None:
    closing = Closing()
    assert not closing.failed
    assert closing.damaged(damage(3)) == "3: event is cut off"
    assert closing.failed
    assert closing.damaged(damage(4)) is None
    assert closing.damaged(damage(7, 9, "dump")) == "7-9: dump is cut off"
    words = (0x7_0000_000A, None, None, None)
    known = closing.damaged(Damaged(8, 9, "word", "a word is cut off", None, words))
    assert known == "8-9: a word is cut off; known: C_BAD_CD  sid 0x7"


def test_a_line_that_is_not_understood_is_quoted_up_to_a_hundred_characters() -> None:
    closing = Closing()
    assert closing.not_understood(Unknown(2, "a", "  smmu? ")) == "2: not understood: 'smmu?'"
    assert closing.not_understood(Unknown(3, "a", "smmu!")) is None
    whole, longer = "x" * 100, "x" * 101
    assert closing.not_understood(Unknown(4, "b", whole)) == f"4: not understood: '{whole}'"
    assert closing.not_understood(Unknown(5, "c", longer)) == f"5: not understood: '{whole}…'"
    assert not closing.failed


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, []),
        (2, ["1 more event: lines 2"]),
        (9, ["8 more event: lines 2, 3, 4, 5, 6, 7, 8, 9"]),
        (10, ["9 more event: lines 2, 3, 4, 5, 6, 7, 8, 9 and 1 more"]),
        (99, ["98 more event: lines 2, 3, 4, 5, 6, 7, 8, 9 and 90 more"]),
    ],
)
def test_the_rest_of_a_kind_is_counted(count: int, said: list[str]) -> None:
    closing = Closing()
    for line in range(1, count + 1):
        closing.damaged(damage(line))
    assert closing.rest() == said


def test_damage_is_told_before_what_is_not_understood() -> None:
    closing = Closing()
    for line in (1, 2):
        closing.not_understood(Unknown(line, "line", "smmu"))
        closing.damaged(damage(line + 10))
    assert closing.rest() == ["1 more event: lines 12", "1 more line: lines 2"]


def test_the_closing_line_counts_all() -> None:
    nothing = "no event, no message explained, no line not understood; of no line"
    assert Closing().closing(0) == nothing
    closing = Closing(events=1, messages=1)
    closing.not_understood(Unknown(1, "line", "smmu"))
    assert closing.closing(1) == "1 event, 1 message explained, 1 line not understood; of 1 line"
    closing = Closing(events=2, messages=3)
    for line in (1, 2):
        closing.damaged(damage(line))
        closing.damaged(damage(line, what="dump"))
        closing.not_understood(Unknown(line, f"line {line}", "smmu"))
    counted = "2 events, 3 messages explained, 4 damaged, 2 lines not understood"
    assert closing.closing(9) == f"{counted}; of 9 lines"
    assert closing.closing(1, raw=True) == f"{counted}; of 1 slot"
