"""QEMU's trace lines are parsed. The lines here are from QEMU 11.1.3."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ProductError
from harness.smmu import trace
from harness.smmu.trace import Trace, TraceEvent
from harness.smmu.vevents import QueueType

TRACE = """\
2026-11-21T05:41:34.534622Z iommufd_viommu_alloc_eventq  iommufd=24 viommu_id=4 type=1 veventq_id=10 veventq_fd=35 (0)
2026-11-21T05:41:34.595376Z smmuv3_accel_translate_ste vSID=0x2100 hwpt_id=0xb ste=d6:4039300b
2026-11-21T05:41:35.000000Z smmuv3_propagate_event SMMU_EVT_F_TRANSLATION sid=0x2200
2026-11-21T05:41:36.000000Z qemu-system-aarch64: warning: vEVENTQ(type 1 id 8): lost 4 event(s)
smmuv3_accel_set_iommu_device devfn=0x0 (idev devid=0x7)
"""  # noqa: E501


def test_lines() -> None:
    allocation, translate, event, plain = trace.parse(TRACE.splitlines())
    assert allocation.name == "iommufd_viommu_alloc_eventq"
    assert (allocation.number("type"), allocation.number("veventq_fd")) == (1, 35)
    assert allocation.succeeded
    assert not translate.succeeded
    assert translate.number("vSID") == 0x2100
    assert event.time is not None
    assert allocation.time is not None
    assert 0.46 < event.time - allocation.time < 0.47
    assert plain.time is None
    assert plain.number("devid") == 7


def test_messages_are_no_events() -> None:
    assert trace.parse_line(TRACE.splitlines()[3]) is None


def test_propagated_events() -> None:
    found = trace.propagated(trace.parse(TRACE.splitlines()))
    assert found == [trace.PropagatedEvent("F_TRANSLATION", 0x2200)]


def test_a_time_on_the_second_has_no_fraction() -> None:
    line = trace.parse_line(
        "2026-11-21T10:06:13Z smmuv3_propagate_event SMMU_EVT_F_TRANSLATION sid=0x8"
    )
    assert line is not None
    assert line.time == 1795255573.0
    assert trace.propagated([line]) == [trace.PropagatedEvent("F_TRANSLATION", 8)]


LIFE = Trace.of("""\
iommufd_backend_alloc_viommu  iommufd=24 dev_id=1 type=1 hwpt_id=2 viommu_id=4 (0)
iommufd_viommu_alloc_eventq  iommufd=24 viommu_id=4 type=2 veventq_id=5 veventq_fd=35 (0)
qemu-system-aarch64: warning: no trace event
iommufd_backend_free_id  iommufd=24 id=5 (0)
iommufd_viommu_alloc_eventq  iommufd=24 viommu_id=4 type=1 veventq_id=7 veventq_fd=36 (0)
""")


def test_lines_are_found_by_their_events() -> None:
    queues = LIFE.named(TraceEvent.ALLOC_EVENTQ, TraceEvent.FREE_ID)
    assert queues.names == [
        "iommufd_viommu_alloc_eventq",
        "iommufd_backend_free_id",
        "iommufd_viommu_alloc_eventq",
    ]
    assert LIFE.count(TraceEvent.ALLOC_EVENTQ) == 2
    assert LIFE.count(TraceEvent.ALLOC_HWPT) == 0
    assert LIFE.numbers(TraceEvent.ALLOC_EVENTQ, "veventq_id") == [5, 7]
    assert LIFE.texts(TraceEvent.FREE_ID) == ["iommufd=24 id=5 (0)"]


def test_a_line_divides_what_came_before_it_from_what_came_after() -> None:
    first, second = LIFE.named(TraceEvent.ALLOC_EVENTQ)
    assert LIFE.first(TraceEvent.ALLOC_EVENTQ) == first
    assert LIFE.before(first).names == ["iommufd_backend_alloc_viommu"]
    assert [*LIFE.before(second), second] == [*LIFE]
    assert second in LIFE.after(first)
    assert LIFE.after(first).names == ["iommufd_backend_free_id", "iommufd_viommu_alloc_eventq"]
    assert LIFE.after(second).names == []


def test_queues_are_told_apart_by_their_type() -> None:
    for kind, queue in ((QueueType.ARM_SMMUV3, 7), (QueueType.TEGRA241_CMDQV, 5)):
        (line,) = LIFE.event_queues(kind)
        assert line.number("veventq_id") == queue


def test_a_number_may_stand_in_brackets() -> None:
    line = trace.parse_line("smmuv3_write_gerror a=(0x10) b=[8], c=9: d=010")
    assert line is not None
    assert [line.number(key) for key in "abc"] == [16, 8, 9]
    with pytest.raises(ProductError, match="without a number d"):
        line.number("d")


def test_what_is_missing_is_named_with_what_is_there() -> None:
    said = "no smmuv3_propagate_event; it has iommufd_backend_alloc_viommu, iommufd_backend_free_id"
    with pytest.raises(ProductError, match=said):
        LIFE.first(TraceEvent.PROPAGATE_EVENT)
    with pytest.raises(ProductError, match="it has nothing"):
        Trace(()).first(TraceEvent.FREE_ID)


# -- damaged lines -----------------------------------------------------------------------------

EVENTS = st.sampled_from(["smmuv3_propagate_event", "iommufd_viommu_alloc_eventq", "other"])


@given(st.lists(st.one_of(st.text(), st.builds("{} {}".format, EVENTS, st.text()))))
def test_foreign_lines_raise_only_what_is_documented(lines: list[str]) -> None:
    found = Trace.of("\n".join(lines))
    with contextlib.suppress(ProductError):
        trace.propagated(found)
    with contextlib.suppress(ProductError):
        found.event_queues(QueueType.ARM_SMMUV3)


@given(st.integers(0, len(TRACE)), st.integers(0, len(TRACE)), st.text(max_size=3))
def test_damaged_lines_raise_only_what_is_documented(start: int, end: int, text: str) -> None:
    with contextlib.suppress(ProductError):
        trace.propagated(Trace.of(TRACE[:start] + text + TRACE[end:]))


@pytest.mark.parametrize("text", ["SMMU_EVT_F_TRANSLATION", "sid=", "X sid=0x", "X sid=many"])
def test_a_line_without_its_number_is_quoted(text: str) -> None:
    line = trace.parse_line(f"smmuv3_propagate_event {text}")
    assert line is not None
    said = f"without a number sid: smmuv3_propagate_event {text}\n  fix: compare the line with"
    with pytest.raises(ProductError, match=said):
        trace.propagated([line])


@pytest.mark.parametrize("day", ["2026-13-01", "2026-02-30", "0000-01-01"])
def test_a_day_that_does_not_exist_is_no_stamp(day: str) -> None:
    assert trace.stamped(f"{day}T10:00:00Z text") == (None, f"{day}T10:00:00Z text")
