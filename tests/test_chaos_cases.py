"""The cases of tests/lab/chaos fit together."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.lab.chaos import actions
from tests.lab.chaos.cases import CASES, Case, Point, Reach
from tests.lab.chaos.run import SUITE

LINK = {
    actions.blink,
    actions.cut_and_mend,
    actions.cut_link,
    actions.silence_for_long,
    actions.silence_link,
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_case_can_be_played(case: Case) -> None:
    assert f"\ndef test_{case.runs}(" in SUITE.read_text()
    assert (case.point is Point.TEST) == ("holds" in case.runs or case.runs in ("writes", "copies"))
    # A run that uses the host by its name does not use the relay.
    assert case.reach is Reach.LINK or case.action not in LINK


def test_no_case_is_there_twice() -> None:
    assert [name for name, count in Counter(map(str, CASES)).items() if count > 1] == []
