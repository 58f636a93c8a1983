"""A script of rules turns a stream of records into exactly the records that its rules define."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.boundary.on_host import rules
from harness.boundary.on_host.rules import RecordRule
from harness.boundary.on_host.script import Script
from harness.smmu.vevents import INT_MAX, VEvent, lost_events


def record(sequence: int) -> bytes:
    return VEvent(sequence, bytes(32)).encode()


def numbers(records: list[bytes]) -> list[int]:
    return [VEvent.decode(one).sequence for one in records]


def run(script: Script, count: int, start: int = 0) -> list[bytes]:
    """Feed `count` records to a script one by one, and return what it sends for them."""
    sent: list[bytes] = []
    for sequence in range(start, start + count):
        script.feed([record(sequence)], now=float(sequence))
        sent += [one for decision in script.decide(float(sequence)) for one in decision.sent]
    return sent


def loaded(*new: RecordRule) -> Script:
    script = Script()
    script.load(new)
    return script


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ((), [0, 1, 2, 3, 4, 5]),
        ((rules.Drop(2),), [2, 3, 4, 5]),
        ((rules.Pass(2), rules.Drop()), [0, 1, 3, 4, 5]),
        ((rules.Duplicate(2),), [0, 0, 0, 1, 2, 3, 4, 5]),
        ((rules.Pass(), rules.Reorder((2, 0, 1))), [0, 3, 1, 2, 4, 5]),
        ((rules.Renumber(to=9, count=2),), [9, 10, 2, 3, 4, 5]),
        ((rules.Renumber(to=INT_MAX, count=3),), [INT_MAX, 0, 1, 3, 4, 5]),
        ((rules.Renumber(by=-2, count=3),), [INT_MAX - 1, INT_MAX, 0, 3, 4, 5]),
        ((rules.Renumber(to=0xFFFF_FFFF),), [0xFFFF_FFFF, 1, 2, 3, 4, 5]),
        ((rules.LostHeader(7), rules.Pass(), rules.LostHeader()), [7, 0, 1, 1, 2, 3, 4, 5]),
        (
            (rules.LostHeader(7), rules.LostHeader(), rules.LostHeader()),
            [7, 8, 9, 0, 1, 2, 3, 4, 5],
        ),
        ((rules.LostHeader(),), [0, 0, 1, 2, 3, 4, 5]),
        ((rules.Pass(3), rules.Short(8), rules.LostHeader()), [0, 1, 2, 3, 4, 4, 5]),
        ((rules.Hold(),), []),
    ],
)
def test_scripts(new: tuple[RecordRule, ...], expected: list[int]) -> None:
    assert numbers(run(loaded(*new), 6)) == expected


def test_a_header_is_one() -> None:
    script = loaded(rules.LostHeader(7))
    (decision,) = script.decide(0.0)
    assert decision.sent == (lost_events(7).encode(),)
    assert script.idle


def test_an_injected_record_is_sent_as_it_is() -> None:
    made_up = bytes(range(40))
    (decision,) = loaded(rules.Inject(made_up)).decide(0.0)
    assert decision.sent == (made_up,)
    assert decision.got == ()


def test_a_short_record_is_cut() -> None:
    assert run(loaded(rules.Short(20)), 2) == [record(0)[:20], record(1)]


def test_what_is_held_comes_in_order_after_the_release() -> None:
    script = loaded(rules.Pass(), rules.Hold())
    assert numbers(run(script, 3)) == [0]
    assert script.waiting == 2
    script.release()
    assert numbers([one for d in script.decide(9.0) for one in d.sent]) == [1, 2]
    with pytest.raises(ValueError, match="nothing is held"):
        script.release()


def test_only_the_rule_whose_turn_it_is_can_be_released() -> None:
    script = loaded(rules.Hold(), rules.Drop())
    script.release()
    assert script.left == [rules.Drop()]
    script = loaded(rules.Drop(), rules.Hold())
    with pytest.raises(ValueError, match="nothing is held"):
        script.release()


def test_what_was_held_comes_under_new_rules() -> None:
    script = loaded(rules.Hold())
    run(script, 3)
    assert script.load([rules.Drop(2)]) == [rules.Hold()]
    assert numbers([one for d in script.decide(9.0) for one in d.sent]) == [2]


def test_nothing_overtakes_a_delayed_record() -> None:
    script = loaded(rules.Delay(10.0), rules.Delay(1.0))
    script.feed([record(0), record(1), record(2)], now=100.0)
    assert [(d.did, d.due) for d in script.decide(100.0)] == [
        ("delay", 110.0),
        ("delay", 110.0),
        ("pass", 110.0),
    ]
    script.feed([record(3)], now=120.0)
    assert [d.due for d in script.decide(120.0)] == [120.0]


def test_rules_that_are_left_say_what_is_left_of_them() -> None:
    script = loaded(rules.Drop(5), rules.Hold())
    run(script, 2)
    assert script.left == [rules.Drop(3), rules.Hold()]


def test_a_record_without_a_whole_header_has_no_number() -> None:
    script = loaded(rules.Pass(), rules.Short(7), rules.LostHeader())
    *_, short, header = run(script, 2)
    assert (short, header) == (record(1)[:7], lost_events(1).encode())


def test_a_header_goes_on_from_what_passed_without_a_decision() -> None:
    script = Script()
    script.passed(record(41))
    script.load([rules.LostHeader()])
    (decision,) = script.decide(0.0)
    assert decision.sent == (lost_events(42).encode(),)


def test_a_script_is_idle_when_it_has_neither_rules_nor_records() -> None:
    script = Script()
    assert script.idle
    script.load([rules.Drop()])
    assert not script.idle
    script.load([])
    script.feed([record(0)], 0.0)
    assert (script.idle, script.waiting) == (False, 1)
    script.decide(0.0)
    assert script.idle


def test_a_rule_that_is_used_up_leaves_the_next_one_whole() -> None:
    script = loaded(rules.Drop(2), rules.Drop(3))
    assert script.left == [rules.Drop(2), rules.Drop(3)]
    run(script, 1)
    assert script.left == [rules.Drop(1), rules.Drop(3)]
    run(script, 1)
    assert script.load([rules.Drop(4)]) == [rules.Drop(3)]
    assert script.left == [rules.Drop(4)]


@pytest.mark.parametrize("to", [7, INT_MAX, INT_MAX + 1])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_numbers_go_on_when_the_rest_of_a_rule_is_given_again(to: int, before: int) -> None:
    whole = run(loaded(rules.Renumber(to=to, count=3)), 3)
    script = loaded(rules.Renumber(to=to, count=3), rules.Drop())
    first = run(script, before)
    left = [rule for rule in script.left if isinstance(rule, RecordRule)]
    assert script.load(left) == left
    assert [*first, *run(script, 3 - before)] == whole


def test_a_decision_is_timed_by_the_record_that_came_last() -> None:
    script = loaded(rules.Reorder((1, 0)), rules.Pass())
    script.feed([record(0)], now=3.0)
    assert script.decide(3.0) == []
    script.feed([record(1)], now=5.0)
    (both,) = script.decide(8.0)
    assert (both.arrived, both.due, both.did) == (5.0, 5.0, "reorder")
    script.load([rules.LostHeader()])
    (header,) = script.decide(9.0)
    assert (header.arrived, header.due) == (9.0, 9.0)
    (first,) = loaded(rules.LostHeader()).decide(0.0)
    assert first.due == 0.0


RECORD_RULES = st.one_of(
    st.builds(rules.Pass, st.integers(1, 3)),
    st.builds(rules.Drop, st.integers(1, 3)),
    st.builds(rules.Duplicate, st.integers(1, 2)),
    st.permutations([0, 1, 2]).map(lambda order: rules.Reorder(tuple(order))),
    st.builds(rules.Delay, st.floats(0.1, 60.0)),
    st.builds(rules.Renumber, to=st.integers(0, INT_MAX)),
    st.builds(rules.Short, st.integers(1, 39)),
    st.builds(rules.LostHeader),
)


@given(st.lists(RECORD_RULES, max_size=8), st.lists(st.integers(1, 5), max_size=8))
def test_every_record_is_decided_once_and_in_order(
    new: list[RecordRule], batches: list[int]
) -> None:
    script = loaded(*new)
    fed: list[bytes] = []
    decisions = []
    for number, size in enumerate(batches):
        batch = [record(len(fed) + index) for index in range(size)]
        fed += batch
        script.feed(batch, float(number))
        decisions += script.decide(float(number))
    got = [one for decision in decisions for one in decision.got]
    assert got == fed[: len(got)]
    assert len(fed) - len(got) == script.waiting
    assert [d.due for d in decisions] == sorted(d.due for d in decisions)
    if not new:
        assert [one for d in decisions for one in d.sent] == fed
