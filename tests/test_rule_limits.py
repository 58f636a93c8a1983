"""The rules of a boundary accept what is within their limits, and nothing beyond; and each does
what its name says at its limits."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable

import pytest

from harness.boundary.on_host import rules
from harness.boundary.on_host.rules import Address, Call, Rule, Turn
from harness.smmu.vevents import INT_MAX, U32_MAX, QueueType, VEvent, lost_events

SMMUV3, CMDQV = Address(QueueType.ARM_SMMUV3), Address(QueueType.TEGRA241_CMDQV)
SECOND = Address(QueueType.ARM_SMMUV3, 1)
Make = Callable[..., Rule]


@pytest.mark.parametrize(
    ("make", "field", "within", "beyond"),
    [
        (rules.Pass, "count", (1, U32_MAX), (0, U32_MAX + 1)),
        (rules.Duplicate, "copies", (1, 1000), (0, 1001)),
        (rules.Delay, "seconds", (0.001, 1, 60.0), (0, -1, 60.001)),
        (rules.Renumber, "to", (0, U32_MAX), (-1, U32_MAX + 1)),
        (rules.Renumber, "by", (-INT_MAX, 0, INT_MAX), (-INT_MAX - 1, INT_MAX + 1)),
        (rules.Short, "size", (1, 39), (0, 40)),
        (rules.LostHeader, "sequence", (None, 0, U32_MAX), (-1, U32_MAX + 1)),
        (rules.Inject, "record", (bytes(8), bytes(40), "00" * 8), (bytes(7), bytes(41), "00" * 7)),
        (rules.Reorder, "order", ((1, 0), [0, 1], (2, 1, 0)), ((0,), (0, 2), (1, 2), (-1, 0))),
        (rules.FailCall, "errno", (1, errno.EINVAL), (0, 41, True)),
        (rules.RefuseInvalidation, "processed", (0, 524287), (-1, 524288)),
        (rules.RefuseInvalidation, "errno", (1,), (0,)),
        (rules.HostIdr, "register", (0, 5), (-1, 6)),
        (rules.HostIdr, "clear", (0, U32_MAX), (-1, U32_MAX + 1)),
        (rules.HostIdr, "set", (0, U32_MAX), (-1, U32_MAX + 1)),
        (rules.Depth, "events", (1, 524288), (0, 524289)),
        (rules.InterruptRead, "errno", (errno.EAGAIN, errno.EINTR, errno.ENOMEM), (0, 1, 5)),
    ],
)
def test_a_field_has_its_limits(
    make: Make, field: str, within: tuple[object, ...], beyond: tuple[object, ...]
) -> None:
    for value in within:
        assert field in make(**{field: value}).to_json()
    for value in beyond:
        with pytest.raises(ValueError, match=f"{field}.* is"):
            make(**{field: value})


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        (rules.Pass(), {"count": 1}),
        (rules.Drop(), {"count": 1}),
        (rules.Duplicate(), {"copies": 1}),
        (rules.Reorder(), {"order": (1, 0)}),
        (rules.Delay(), {"seconds": 1.0, "count": 1}),
        (rules.Renumber(to=3), {"to": 3, "by": None, "count": 1}),
        (rules.Short(), {"size": 20, "count": 1}),
        (rules.FailCall(), {"errno": errno.ENOMEM, "call": Call.VEVENTQ_ALLOC, "count": 1}),
        (rules.RefuseInvalidation(), {"processed": 0, "errno": errno.EIO, "count": 1}),
        (rules.Depth(), {"events": 64, "count": 1}),
        (rules.BusyOnDestroy(), {"count": 1}),
        (rules.InterruptRead(), {"errno": errno.EAGAIN, "count": 1}),
        (rules.HostIdr(), {"register": 0, "clear": 0, "set": 0, "count": 1000}),
    ],
    ids=str,
)
def test_a_rule_says_its_fields(rule: Rule, fields: dict[str, object]) -> None:
    assert rule.to_json() == {"rule": rule.name, **fields}
    shown = ", ".join(f"{key}={value}" for key, value in fields.items())
    assert str(rule) == f"{rule.name}({shown})"


@pytest.mark.parametrize(
    ("rule", "fits", "fits_not"),
    [
        (rules.Drop(), (SMMUV3, SECOND, CMDQV), ()),
        (rules.Short(23), (SMMUV3, CMDQV), ()),
        (rules.Short(24), (SMMUV3,), (CMDQV,)),
        (rules.Short(39), (SMMUV3,), (CMDQV,)),
        (rules.Inject(bytes(24)), (SMMUV3, CMDQV), ()),
        (rules.Inject(bytes(25)), (SMMUV3, SECOND), (CMDQV,)),
        (rules.Merge(), (SMMUV3, SECOND), (CMDQV,)),
        (rules.FailCall(), (SMMUV3, SECOND, CMDQV), ()),
        (rules.FailCall(call=Call.VIOMMU_ALLOC), (SMMUV3, CMDQV), (SECOND,)),
        (rules.FailCall(call=Call.HW_QUEUE_ALLOC), (CMDQV,), (SMMUV3, SECOND)),
        (rules.FailCall(call=Call.MMAP), (CMDQV,), (SMMUV3, SECOND)),
        (rules.FailCall(call=Call.ATTACH_PT), (SMMUV3,), (CMDQV, SECOND)),
        (rules.RefuseInvalidation(), (SMMUV3,), (CMDQV, SECOND)),
        (rules.HostIdr(), (SMMUV3,), (CMDQV, SECOND)),
        (rules.BusyOnDestroy(), (SMMUV3, SECOND, CMDQV), ()),
    ],
    ids=str,
)
def test_a_rule_stands_where_it_can_act(
    rule: Rule, fits: tuple[Address, ...], fits_not: tuple[Address, ...]
) -> None:
    for queue in fits:
        rule.check_fits(queue)
    for queue in fits_not:
        with pytest.raises(ValueError, match=f"{rule.name}: "):
            rule.check_fits(queue)


def record(sequence: int, data: int = 0) -> bytes:
    return VEvent(sequence, bytes([data]) * 32).encode()


def numbers(records: list[bytes]) -> list[int]:
    return [VEvent.decode(one).sequence for one in records]


def test_merging_closes_the_gaps_that_it_makes_and_no_others() -> None:
    came = [record(5, 1), record(6, 2), record(7, 1), record(9, 3), record(10, 2), record(11, 4)]
    kept, removed = rules.Merge().sift(came, 0)
    assert removed == [came[2], came[4]]
    assert numbers(kept) == [5, 6, 8, 9]
    assert [VEvent.decode(one).data[0] for one in kept] == [1, 2, 3, 4]


def test_merging_goes_on_from_what_was_removed_before() -> None:
    assert numbers(rules.Merge().sift([record(5), record(6, 1)], 3).kept) == [2, 3]
    assert numbers(rules.Merge().sift([record(1)], 3).kept) == [INT_MAX - 1]


def test_headers_are_not_merged() -> None:
    came = [lost_events(4).encode(), lost_events(5).encode()]
    assert rules.Merge().sift(came, 0) == (came, [])


def test_a_standing_rule_keeps_all_unless_it_says_otherwise() -> None:
    assert rules.StandingRule().sift((record(1),), 2) == ([record(1)], [])


def test_what_a_rule_takes_and_how_long_it_waits() -> None:
    assert [one.needs for one in (rules.Pass(), rules.Hold(), rules.Duplicate())] == [1, 1, 1]
    assert [rules.LostHeader().needs, rules.Inject(bytes(8)).needs] == [0, 0]
    assert (rules.Reorder((2, 1, 0)).needs, rules.Pass().wait, rules.Delay(3).wait) == (3, 0.0, 3)
    assert [one.holds for one in (rules.Pass(), rules.Hold())] == [False, True]


def test_numbers_are_given_as_the_kernel_counts() -> None:
    def number(rule: rules.Renumber, used: int) -> int:
        (sent,) = rule.sent((record(9),), Turn(used, 0))
        return VEvent.decode(sent).sequence

    assert number(rules.Renumber(by=5), 0) == 14
    assert number(rules.Renumber(by=INT_MAX), 7) == 8
    assert [number(rules.Renumber(to=INT_MAX), used) for used in range(3)] == [INT_MAX, 0, 1]
    assert [number(rules.Renumber(to=U32_MAX), used) for used in range(2)] == [U32_MAX, 0]


@pytest.mark.parametrize(
    ("rule", "call"),
    [
        (rules.RefuseInvalidation(), Call.HWPT_INVALIDATE),
        (rules.FailCall(call=Call.HWPT_INVALIDATE), Call.HWPT_INVALIDATE),
        (rules.FailCall(call=Call.MMAP), Call.MMAP),
        (rules.FailCall(), None),
        (rules.Depth(), None),
    ],
    ids=str,
)
def test_calls_that_are_made_often_are_watched(rule: Rule, call: Call | None) -> None:
    assert rules.watched(rule) is call


def test_calls_have_their_numbers() -> None:
    assert {call.name: call.value for call in Call} == {
        "MMAP": 0x20000,
        "ATTACH_PT": 0x3B77,
        "DETACH_PT": 0x3B78,
        "HWPT_ALLOC": 0x3B89,
        "HWPT_ALLOC_NEST_PARENT": 0x13B89,
        "GET_HW_INFO": 0x3B8A,
        "HWPT_INVALIDATE": 0x3B8D,
        "VIOMMU_ALLOC": 0x3B90,
        "VDEVICE_ALLOC": 0x3B91,
        "VEVENTQ_ALLOC": 0x3B93,
        "HW_QUEUE_ALLOC": 0x3B94,
    }
    assert Call.HWPT_ALLOC_NEST_PARENT.request == 0x3B89
    both = {call for call in Call if len(call.kinds) == 2}
    assert both == {Call.VIOMMU_ALLOC, Call.VEVENTQ_ALLOC}


def test_a_queue_is_named_by_its_type_and_its_slot() -> None:
    assert Address.from_json([1, 0]) == SMMUV3 == Address(QueueType.ARM_SMMUV3, 0)
    assert str(SECOND) == "ARM_SMMUV3 1"
    for wrong in ([1, 0, 0], (1, 0), [0, 0], [3, 0], [True, 0], [1, -1], [1, 2**32]):
        with pytest.raises(ValueError, match="not a queue"):
            Address.from_json(wrong)
    assert Address.from_json([2, U32_MAX]).slot == U32_MAX


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"rule": "inject", "record": "zz" * 8}, "inject: record is .* in hexadecimal digits"),
        ({"rule": "inject", "record": [1]}, "inject: record is .*; allowed: a header"),
        ({"rule": "reorder", "order": 5}, "reorder: order is 5"),
        ({"rule": "reorder", "order": [1.0, 0.0]}, "reorder: order is"),
        ({"rule": "reorder", "order": "10"}, "reorder: order is '10'"),
        ({"rule": "delay", "seconds": "1"}, "delay: seconds is '1'"),
        ({"rule": "delay", "seconds": True}, "delay: seconds is True"),
        ({"rule": "fail_call", "call": 5}, "fail_call: call is 5; allowed: MMAP, "),
        ({"rule": "fail_call", "call": "5"}, "fail_call: call is '5'"),
        ({"rule": "interrupt_read", "errno": 11.0}, "interrupt_read: errno is 11.0"),
        ({"rule": "drop", "count": 1.0}, "drop: count is 1.0"),
        ({"rule": "drop", "a": 1, "b": 2}, "drop: unknown field a, b; allowed: count$"),
        ({"rule": "hold", "count": 1}, "hold: unknown field count; allowed: none$"),
        ({"rule": "explode"}, "not a rule: {'rule': 'explode'}; allowed: pass, drop, "),
        ({"rule": []}, "not a rule: {'rule': "),
        (["drop"], "not a rule: \\['drop'\\]"),
    ],
    ids=str,
)
def test_what_is_no_rule_is_refused(body: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rules.from_json(body)


def test_an_error_shows_eighty_characters_of_a_long_value() -> None:
    with pytest.raises(ValueError, match=r"^not a queue: \S{80}; allowed"):
        Address.from_json("x" * 99)
    with pytest.raises(ValueError, match=r"^drop: count is \S{80}; allowed"):
        rules.from_json({"rule": "drop", "count": "x" * 99})


def test_two_rules_of_one_name_are_a_mistake() -> None:
    with pytest.raises(AssertionError, match="two rules are named drop"):
        type("Other", (Rule,), {"name": "drop"})
    unnamed = type("Unnamed", (Rule,), {})
    assert unnamed not in rules.RULES.values()


def test_rules_are_values() -> None:
    for rule in (rules.Drop(2), rules.HostIdr(1, clear=3)):
        assert rules.from_json(rule.to_json()) == rule == dataclasses.replace(rule)
        assert len({rule, dataclasses.replace(rule)}) == 1


#: What some rules have to be given.
NEEDED: dict[str, dict[str, object]] = {"renumber": {"to": 1}, "inject": {"record": bytes(8)}}


@pytest.mark.parametrize("name", rules.RULES)
def test_a_rule_is_a_value_that_nobody_changes(name: str) -> None:
    one, same = (rules.RULES[name](**NEEDED.get(name, {})) for _ in range(2))
    assert {one: "found"}[same] == "found"
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "another"  # type: ignore[misc]
