"""Rules survive the way to the host and back, and rules that make no sense are refused."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.boundary.client import CMDQV, SMMUV3, Boundary, behind_boundary
from harness.boundary.on_host import rules
from harness.boundary.on_host.rules import Address, Call, Rule, Turn
from harness.errors import HarnessError
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import ANY
from harness.smmu.vevents import QueueType, VEvent

SAMPLES: list[Rule] = [
    rules.Pass(3),
    rules.Drop(),
    rules.Duplicate(2),
    rules.Reorder((2, 0, 1)),
    rules.Delay(0.5, count=2),
    rules.Renumber(to=7),
    rules.Renumber(by=-3, count=4),
    rules.Short(20),
    rules.Hold(),
    rules.LostHeader(5),
    rules.Inject(bytes(40)),
    rules.Merge(),
    rules.FailCall(errno.EINVAL, Call.VIOMMU_ALLOC),
    rules.RefuseInvalidation(2, errno.EIO, count=3),
    rules.HostIdr(1, clear=0x3F, set=8),
    rules.Depth(8),
    rules.BusyOnDestroy(),
    rules.InterruptRead(errno.EINTR),
]


def test_there_is_a_sample_of_every_rule() -> None:
    assert {type(sample) for sample in SAMPLES} == set(rules.RULES.values())


@pytest.mark.parametrize("rule", SAMPLES, ids=str)
def test_rules_both_ways(rule: Rule) -> None:
    assert rules.from_json(json.loads(json.dumps(rule.to_json()))) == rule


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: rules.Drop(0), "drop: count is 0; allowed: 1 or more"),
        (lambda: rules.Pass(True), "count is True"),
        (lambda: rules.Duplicate(0), "copies is 0; allowed: 1 to 1000"),
        (lambda: rules.Reorder((0,)), r"order is \(0,\)"),
        (lambda: rules.Reorder((0, 0)), r"order is \(0, 0\)"),
        (lambda: rules.Reorder((1.0, 0.0)), "each once"),  # type: ignore[arg-type]
        (lambda: rules.Delay(0), "seconds is 0"),
        (lambda: rules.Delay(3600), "60 at most"),
        (lambda: rules.Renumber(), "exactly one"),
        (lambda: rules.Renumber(to=1, by=1), "exactly one"),
        (lambda: rules.Renumber(to=1 << 32), r"0 to 2\^32-1"),
        (lambda: rules.Short(0), "size is 0"),
        (lambda: rules.Short(40), "1 to 39"),
        (lambda: rules.LostHeader(-1), "sequence is -1"),
        (lambda: rules.Inject(b"short"), "a header of 8 bytes"),
        (lambda: rules.FailCall(0), "errno is 0"),
        (lambda: rules.FailCall(99999), "errno is 99999"),
        (lambda: rules.RefuseInvalidation(-1), "processed is -1; allowed: 0 to 524287"),
        (lambda: rules.RefuseInvalidation(1 << 19), "processed is 524288"),
        (lambda: rules.RefuseInvalidation(errno=0), "errno is 0"),
        (lambda: rules.HostIdr(6), "register is 6; allowed: 0 to 5"),
        (lambda: rules.HostIdr(0, set=1 << 32), "set is 4294967296; allowed: 32 bits"),
        (lambda: rules.FailCall(errno.ENOMEM, 5), "VEVENTQ_ALLOC"),  # type: ignore[arg-type]
        (lambda: rules.Depth(0), "events is 0"),
        (lambda: rules.InterruptRead(errno.EIO), "EAGAIN, EINTR or ENOMEM"),
        (lambda: rules.InterruptRead(11.0), "EAGAIN, EINTR or ENOMEM"),  # type: ignore[arg-type]
        (lambda: rules.from_json({"rule": "explode"}), "not a rule: .*allowed: pass, drop"),
        (lambda: rules.from_json({"rule": "drop", "number": 2}), "drop: unknown field number"),
        (lambda: rules.from_json("drop"), "not a rule: 'drop'"),
    ],
)
def test_nonsense_is_refused_with_what_is_allowed(make: Callable[[], Rule], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("value", [None, [3, 0], [1], [1, -1], ["1", "0"], "1", [1, True]])
def test_no_queue(value: object) -> None:
    with pytest.raises(ValueError, match=r"not a queue: .*1 \(ARM_SMMUV3\)"):
        Address.from_json(value)


def test_queue_off_the_wire() -> None:
    assert Address.from_json([2, 1]) == Address(QueueType.TEGRA241_CMDQV, 1)


ONE = GuestSpec(smmus=(SmmuSpec(devices=(ANY,)),))


@pytest.mark.parametrize(
    ("initial", "said"),
    [
        ({Address(QueueType.ARM_SMMUV3, 1): [rules.Drop()]}, "has 1 SMMUs"),
        ({CMDQV: [rules.Short(24)]}, "1 to 23 for TEGRA241_CMDQV"),
        ({CMDQV: [rules.Inject(bytes(40))]}, "24 bytes at most"),
        ({SMMUV3: [rules.InterruptRead()]}, "reads=True"),
        ({CMDQV: [rules.FailCall(call=Call.ATTACH_PT)]}, "ATTACH_PT is .*; allowed: ARM_SMMUV3 0"),
        ({SMMUV3: [rules.FailCall(call=Call.MMAP)]}, "MMAP is .*; allowed: TEGRA241_CMDQV 0"),
        ({CMDQV: [rules.RefuseInvalidation()]}, "allowed: ARM_SMMUV3 0"),
        ({CMDQV: [rules.HostIdr(1, set=8)]}, "host_idr: queue is .*; allowed: ARM_SMMUV3 0"),
    ],
)
def test_rules_that_a_guest_cannot_have_are_refused_before_it_boots(
    initial: dict[Address, list[Rule]], said: str
) -> None:
    with pytest.raises(HarnessError, match=said):
        behind_boundary(ONE, initial)


def test_the_calls_have_the_kernels_numbers() -> None:
    """All are _IO(';', number). Sources: enum in include/uapi/linux/iommufd.h, whose base is 0x80;
    include/uapi/linux/vfio.h, whose base is 100."""
    numbers = {
        Call.ATTACH_PT: 100 + 19,
        Call.DETACH_PT: 100 + 20,
        Call.HWPT_ALLOC: 0x89,
        Call.HWPT_ALLOC_NEST_PARENT: 0x89,
        Call.GET_HW_INFO: 0x8A,
        Call.HWPT_INVALIDATE: 0x8D,
        Call.VIOMMU_ALLOC: 0x90,
        Call.VDEVICE_ALLOC: 0x91,
        Call.VEVENTQ_ALLOC: 0x93,
        Call.HW_QUEUE_ALLOC: 0x94,
    }
    assert {call: call.request for call in Call} == {
        **{call: ord(";") << 8 | number for call, number in numbers.items()},
        Call.MMAP: 0,
    }


TWO = GuestSpec(smmus=(SmmuSpec(devices=(ANY,)), SmmuSpec(devices=(ANY,))))


@pytest.mark.parametrize("call", list(Call), ids=lambda call: call.name)
def test_only_a_queue_has_a_slot(call: Call) -> None:
    """A rule where it can never act would make a test pass that sees nothing."""
    second = Address(call.kinds[0], 1)
    if call is Call.VEVENTQ_ALLOC:
        assert behind_boundary(TWO, {second: [rules.FailCall(call=call)]}).boundary
        return
    with pytest.raises(HarnessError, match=rf"queue for {call.name} is .* 1'; allowed: .* 0"):
        behind_boundary(TWO, {second: [rules.FailCall(call=call)]})


def options(*rule: Rule, queue: Address = SMMUV3, watches: tuple[Call, ...] = ()) -> list[str]:
    boundary = behind_boundary(ONE, {queue: rule}, watches=watches).boundary
    assert boundary
    return [one for one in boundary.options if not one.startswith("--rules")]


def test_a_frequent_call_is_supervised_for_a_rule_or_on_request_only() -> None:
    assert options(*(rules.FailCall(call=Call.HWPT_ALLOC), rules.Depth())) == []
    assert options(rules.RefuseInvalidation()) == ["--watch=HWPT_INVALIDATE"]
    assert options(rules.FailCall(call=Call.MMAP), queue=CMDQV) == ["--watch=MMAP"]
    both = options(watches=(Call.MMAP, Call.HWPT_INVALIDATE, Call.VIOMMU_ALLOC))
    assert both == ["--watch=HWPT_INVALIDATE", "--watch=MMAP"]


@pytest.mark.parametrize("rule", [rules.RefuseInvalidation(), rules.FailCall(call=Call.MMAP)])
def test_a_later_rule_for_a_call_that_is_not_supervised_is_refused(rule: Rule) -> None:
    call = rules.watched(rule)
    assert call
    guest = cast(Guest, SimpleNamespace(name="one", spec=behind_boundary(ONE)))
    with pytest.raises(HarnessError, match=f"does not supervise {call.name}") as refused:
        Boundary(guest).apply(rule, queue=Address(call.kinds[0]))
    assert f"behind_boundary(..., watches=[Call.{call.name}])" in str(refused.value.fix)


def test_no_command_queue_to_rule_without_cmdqv() -> None:
    off = GuestSpec(smmus=(SmmuSpec(devices=(ANY,), properties=(("cmdqv", "off"),)),))
    with pytest.raises(HarnessError, match="has 0 SMMUs with such a queue"):
        behind_boundary(off, {CMDQV: [rules.Drop()]})
    assert behind_boundary(ONE, {SMMUV3: [rules.Drop()]}).boundary


# -- any JSON ------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


def read(value: object) -> Rule | None:
    """Read a rule off the wire. Raises whatever `from_json` does not document."""
    try:
        return rules.from_json(value)
    except ValueError:
        return None


@given(JSON, JSON)
def test_any_json_is_a_rule_or_a_value_error(value: object, name: object) -> None:
    read(value)
    read({"rule": name})
    with contextlib.suppress(ValueError):
        Address.from_json(value)


@given(st.data(), st.sampled_from(SAMPLES))
def test_any_value_of_a_field_is_refused_or_can_be_used(data: st.DataObject, rule: Rule) -> None:
    """What is accepted is a rule that can be sent on, and that a script can carry out."""
    body = rule.to_json()
    for field in sorted(set(body) - {"rule"}):
        body[field] = data.draw(st.one_of(st.just(body[field]), JSON), field)
    made = read(body)
    if made is None:
        return
    assert rules.from_json(json.loads(json.dumps(made.to_json()))) == made
    if isinstance(made, rules.RecordRule):
        records = tuple(VEvent(number, bytes(32)).encode() for number in range(made.needs))
        assert all(isinstance(one, bytes) for one in made.sent(records, Turn(0, 0)))
        assert 0 <= made.wait <= rules.LONGEST_DELAY


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"rule": []}, "not a rule"),
        ({"rule": "reorder", "order": 5}, "reorder: order is 5; allowed: the numbers 0 to n-1"),
        ({"rule": "reorder", "order": ["a", 0]}, "reorder: order is"),
        ({"rule": "reorder", "order": [1.0, 0.0]}, "reorder: order is"),
        ({"rule": "inject", "record": 5}, "inject: record is 5; allowed: a header"),
        ({"rule": "inject", "record": "zz"}, "inject: record is 'zz'; .* in hexadecimal digits"),
        ({"rule": "delay", "seconds": True}, "delay: seconds is True"),
        ({"rule": "interrupt_read", "errno": 11.0}, "interrupt_read: errno is 11.0"),
        ({"rule": "drop", "count": [[[]] * 9] * 9}, "drop: count is"),
    ],
    ids=str,
)
def test_a_field_of_another_type_is_refused(body: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rules.from_json(body)


def test_nothing_is_too_deep_to_be_refused() -> None:
    deep: object = 0
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, {"rule": deep}, {"rule": "drop", "count": deep}):
        with pytest.raises(ValueError, match=r"\[\[\["):
            rules.from_json(value)
    with pytest.raises(ValueError, match=r"not a queue: \[\[\["):
        Address.from_json(deep)
