"""A need is met by every device that can do what it asks for, and says what that is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.host.ability import ANY, DISK, FLOODER, READER, Ability, Need, able, of_role

ABILITIES = st.frozensets(st.sampled_from(Ability))


@given(ABILITIES, ABILITIES)
def test_a_device_with_more_abilities_will_do(
    asked: frozenset[Ability], can: frozenset[Ability]
) -> None:
    assert able(*asked).met_by("edu", asked | can)
    assert able(*asked).met_by("edu", can) == (not asked - can)
    assert ANY.met_by("edu", can)


def test_a_role_is_met_by_that_kind_only() -> None:
    everything = frozenset(Ability)
    assert of_role("nvme").met_by("nvme", frozenset())
    assert not of_role("nvme").met_by("edu", everything)
    both = Need(frozenset({Ability.READ}), "nvme")
    assert not both.met_by("nvme", frozenset())
    assert both.met_by("nvme", everything)


@pytest.mark.parametrize(
    ("need", "text"),
    [
        (ANY, "device"),
        (READER, "device that can read"),
        (FLOODER, "device that can flood and write"),
        (of_role("igb"), "device of role igb"),
        (Need(DISK.can, "nvme"), "device of role nvme that can be a disk"),
    ],
)
def test_a_need_says_what_it_asks_for(need: Need, text: str) -> None:
    assert str(need) == text
