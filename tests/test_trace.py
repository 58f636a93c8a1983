"""QEMU's trace lines, as QEMU 11.1.3 wrote them."""

from __future__ import annotations

from harness.smmu import trace

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
