"""The accounting of lost events is right for a queue that loses them as the kernel's does."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.smmu.loss import (
    Lost,
    Overflowed,
    QueueWarning,
    Reader,
    ReadFailed,
    Report,
    ShortRead,
    count_lost,
    messages,
    reports,
)
from harness.smmu.vevents import (
    HEADER_BYTES,
    INT_MAX,
    LOST_EVENTS,
    U32_MAX,
    QueueType,
    VEvent,
    distance,
    lost_events,
    split,
    successor,
)

SMMU = QueueType.ARM_SMMUV3
KINDS = st.sampled_from(list(QueueType))


def record(sequence: int, kind: QueueType = SMMU) -> bytes:
    return VEvent(sequence, sequence.to_bytes(4, "little") * (kind.data_bytes // 4)).encode()


@dataclass
class KernelQueue:
    """A vEVENTQ that treats each event as iommufd_viommu_report_event and iommufd_veventq_fops_read
    do."""

    depth: int
    kind: QueueType
    sequence: int
    queue: deque[bytes] = field(default_factory=deque)
    header: bool = False  # whether a LOST_EVENTS header is at the tail

    def report(self) -> None:
        number, self.sequence = self.sequence, successor(self.sequence)
        if self.header:
            self.queue.pop()
        self.header = len(self.queue) == self.depth
        self.queue.append(
            lost_events(number).encode() if self.header else record(number, self.kind)
        )

    def read(self) -> bytes:
        """Return one record or the header, or no bytes when the queue is empty."""
        if not self.queue:
            return b""
        first = self.queue.popleft()
        self.header = self.header and bool(self.queue)
        return first


@given(
    depth=st.integers(1, 5),
    kind=KINDS,
    start=st.sampled_from([0, 1, INT_MAX - 3, INT_MAX]),
    moves=st.lists(st.booleans(), max_size=60),
)
def test_every_event_is_received_or_counted_as_lost(
    depth: int, kind: QueueType, start: int, moves: list[bool]
) -> None:
    kernel = KernelQueue(depth, kind, start)
    sent = 0
    read: list[bytes] = []
    for is_event in moves:
        if is_event:
            kernel.report()
            sent += 1
        else:
            read.append(kernel.read())
    while kernel.queue:
        read.append(kernel.read())
    read = [one for one in read if one]

    reader = Reader(kind)
    outcomes = [reader.accept(one) for one in read]
    received = [outcome.event for outcome in outcomes if outcome.event is not None]
    lost = count_lost(map(VEvent.decode, read), after=(start - 1) & INT_MAX)
    assert len(received) + lost == sent
    said = [outcome.report for outcome in outcomes if outcome.report]
    assert said == reports(kind, read)
    if Overflowed() not in said:
        # Without a header, the gaps that the reader reports are the whole loss.
        assert sum(one.count for one in said if isinstance(one, Lost)) == lost


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        ([0, 1, 2], []),
        ([7], []),
        ([0, 5, 6, 9], [Lost(4), Lost(2)]),
        ([INT_MAX - 1, INT_MAX, 0, 1], []),
        ([INT_MAX, 2], [Lost(2)]),
        ([3, 3], [Lost(INT_MAX)]),
        ([5, 7, 6, 8], [Lost(1), Lost(INT_MAX - 1), Lost(1)]),
    ],
)
def test_gaps(sequences: list[int], expected: list[Report]) -> None:
    assert reports(SMMU, map(record, sequences)) == expected


def test_the_kernel_counts_with_31_bits() -> None:
    assert successor(0x7FFF_FFFE) == 0x7FFF_FFFF
    assert successor(0x7FFF_FFFF) == 0
    assert reports(SMMU, [record(0x7FFF_FFFF), record(1)]) == [Lost(1)]


def test_tracking_restarts_after_an_overflow() -> None:
    stream = [record(0), lost_events(9).encode(), record(20), record(22)]
    assert reports(SMMU, stream) == [Overflowed(), Lost(1)]


@pytest.mark.parametrize("size", [1, 7, 9, 39])
def test_a_short_record_is_reported_and_changes_nothing_else(size: int) -> None:
    reader = Reader(SMMU)
    reader.accept(record(0))
    outcome = reader.accept(record(1)[:size])
    assert outcome.report == ShortRead(size, 40)
    assert outcome.event is None
    assert reader.accept(record(1)).report is None


def test_an_empty_queue_says_nothing() -> None:
    assert reports(SMMU, [b"", record(0), b"", record(1)]) == []


def test_a_header_that_lost_nothing_is_a_short_record() -> None:
    assert reports(SMMU, [record(1)[:8]]) == [ShortRead(8, 40)]


@given(KINDS, st.lists(st.one_of(st.integers(0, INT_MAX), st.none()), max_size=20))
def test_a_read_is_split_at_its_records(kind: QueueType, numbers: list[int | None]) -> None:
    """A read that returns several records is split. None stands for a LOST_EVENTS header here."""
    records = [lost_events(1).encode() if n is None else record(n, kind) for n in numbers]
    assert split(b"".join(records), kind) == records


def test_what_is_no_record_is_not_hidden() -> None:
    assert split(record(0) + b"\0\0\0", SMMU) == [record(0), b"\0\0\0"]


@given(st.integers(0, 2**32 - 1), st.binary(max_size=40), st.integers(0, 2**32 - 1))
def test_records_both_ways(sequence: int, data: bytes, flags: int) -> None:
    event = VEvent(sequence, data, flags)
    assert VEvent.decode(event.encode()) == event


def test_qemu_messages() -> None:
    text = (
        "2026-11-21T07:00:00.000000Z qemu-system-aarch64: warning: vEVENTQ(type 1 id 7): "
        "lost 4 event(s)\r\n"
        "qemu: warning: something else\n"
        "qemu: warning: vEVENTQ(type 1 id 7): overflowed\n"
        "qemu: warning: vEVENTQ(type 2 id 9): short read(20/24 bytes)\n"
        "qemu: warning: vEVENTQ(type 2 id 9): read failed (Input/output error)\n"
    )
    assert list(messages(text)) == [
        QueueWarning(1, 7, Lost(4)),
        QueueWarning(1, 7, Overflowed()),
        QueueWarning(2, 9, ShortRead(20, 24)),
        QueueWarning(2, 9, ReadFailed("Input/output error")),
    ]


def test_a_new_message_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="unknown warning of QEMU's"):
        list(messages("warning: vEVENTQ(type 1 id 7): on fire"))


def test_records_are_as_the_kernels_header_has_them() -> None:
    assert {kind.name: kind.value for kind in QueueType} == {"ARM_SMMUV3": 1, "TEGRA241_CMDQV": 2}
    assert [kind.data_bytes for kind in QueueType] == [32, 16]
    assert [kind.record_bytes for kind in QueueType] == [40, 24]
    assert (HEADER_BYTES, LOST_EVENTS, INT_MAX, U32_MAX) == (8, 1, 2**31 - 1, 2**32 - 1)
    assert VEvent(0x01020304, b"data", 5).encode() == b"\5\0\0\0\4\3\2\1data"
    assert VEvent(7) == VEvent(7, b"", 0)
    assert lost_events(7) == VEvent(7, b"", 1)


def test_a_record_begins_with_a_whole_header() -> None:
    assert VEvent.decode(b"\1\0\0\0\7\0\0\0") == lost_events(7)
    with pytest.raises(ValueError, match="a header of 8 bytes, not 7"):
        VEvent.decode(bytes(7))


def test_only_a_header_with_the_flag_and_without_data_tells_of_a_loss() -> None:
    assert lost_events(1).is_lost_events
    assert VEvent(1, flags=3).is_lost_events
    assert not VEvent(1, flags=2).is_lost_events
    assert not VEvent(1).is_lost_events
    assert not VEvent(1, b"data", LOST_EVENTS).is_lost_events


def test_a_distance_goes_forward_with_31_bits() -> None:
    assert (distance(3, 5), distance(5, 5), distance(5, 3)) == (2, 0, INT_MAX - 1)
    assert distance(INT_MAX, 0) == 1


def test_other_flags_do_not_shorten_a_record() -> None:
    with_flag = VEvent(1, bytes(32), flags=2).encode()
    assert split(with_flag + record(2), SMMU) == [with_flag, record(2)]
    headers = VEvent(1, flags=3).encode() * 2
    assert split(headers, SMMU) == [headers[:8], headers[:8]]


def test_what_is_lost_is_counted_from_the_event_before_on() -> None:
    events = [VEvent(5, b"a"), VEvent(8, b"b"), lost_events(10), VEvent(12, b"c")]
    assert count_lost(events) == 2 + 2 + 1
    assert count_lost(events, after=4) == 5
    assert count_lost(events, after=0) == 4 + 5
    assert count_lost([lost_events(5)], after=3) == 2


def test_a_report_is_said_as_qemu_says_it() -> None:
    said: list[Report] = [Lost(4), Overflowed(), ShortRead(20, 24), ReadFailed("no")]
    for report in said:
        warning = f"vEVENTQ(type 1 id 7): {report}"
        assert list(messages(warning)) == [QueueWarning(1, 7, report)]
