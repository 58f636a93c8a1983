"""A fault source says what it can do, and predicts the accesses of its DMA."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.devices.dma import UNMAPPED, Direction, Dma
from harness.devices.source import FaultSource
from harness.errors import HarnessError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.host.ability import ANY, Ability
from harness.smmu.access import Access
from harness.smmu.events import EventRecord, EventType


class Words(FaultSource):
    """It writes and reads words."""

    way = "words"
    can = frozenset({Ability.READ, Ability.WRITE})
    longest = 4096

    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0, delay_ms: int = 0) -> str:
        raise NotImplementedError


class Lines(Words):
    """It only reads, in lines that may be cut, and begins at a page."""

    way = "lines"
    can = frozenset({Ability.READ})
    grain = 64
    cut = True
    alignment = 4096


DEVICE = AssignedDevice("dev0.0", ANY, "edu", "0000:09:00.0", 0, 0)
WORDS, LINES = (kind(cast(Guest, None), DEVICE) for kind in (Words, Lines))


def addresses(expected: list[Access]) -> list[int]:
    return [access.record.input_addr or 0 for access in expected]


@given(st.integers(0, 1 << 48), st.integers(1, 400))
def test_one_access_for_each_grain_touched(iova: int, length: int) -> None:
    expected = addresses(WORDS.expected(Dma(iova, length, Direction.WRITE)))
    assert expected[0] == iova
    words = range(iova // 4, (iova + length - 1) // 4 + 1)
    assert [address // 4 for address in expected] == list(words)
    assert not [address for address in expected[1:] if address % 4]


@given(st.sampled_from([WORDS, LINES]), st.integers(1, 64), st.integers(0, 100))
def test_a_burst_has_as_many_accesses_as_asked_for(one: FaultSource, count: int, page: int) -> None:
    dma = one.burst(count, UNMAPPED + 4096 * page)
    expected = one.expected(dma)
    assert len(set(expected)) == len(expected) == count
    assert addresses(expected) == list(range(dma.iova, dma.iova + dma.length, one.grain))


@pytest.mark.parametrize("direction", Direction)
def test_records_are_those_of_the_dma(direction: Direction) -> None:
    dma = WORDS.burst(1, 0x5000, direction)
    record = EventRecord.stage1_fault(
        EventType.F_ACCESS, sid=0x2100, input_addr=0x5000, rnw=direction is Direction.READ
    )
    assert WORDS.expected(dma, EventType.F_ACCESS) == [Access(record)]
    (fault,) = WORDS.expected(dma)
    assert fault.record.type == EventType.F_TRANSLATION


def test_what_may_be_cut_says_so() -> None:
    assert {access.most for access in WORDS.expected(WORDS.burst(8))} == {1}
    assert {(access.span, access.most) for access in LINES.expected(LINES.burst(8))} == {(64, 16)}


def test_a_burst_takes_the_direction_that_the_source_has() -> None:
    assert WORDS.burst(1).direction is Direction.WRITE
    assert LINES.burst(1).direction is Direction.READ


@pytest.mark.parametrize(
    ("one", "dma", "says"),
    [
        (LINES, Dma(UNMAPPED, 64, Direction.WRITE), "cannot write by its lines"),
        (LINES, Dma(UNMAPPED + 64, 64, Direction.READ), "cannot begin at 0x40000040 by its lines"),
        (WORDS, Dma(UNMAPPED, 4097, Direction.READ), "cannot move 4097 bytes at once by its words"),
    ],
)
def test_a_dma_that_a_source_cannot_perform_is_refused(
    one: FaultSource, dma: Dma, says: str
) -> None:
    for refuse in (one.check, one.expected):
        with pytest.raises(HarnessError, match=f"edu at 0000:21:00.0 {says}") as refused:
            refuse(dma)
        assert refused.value.fix
    for fits in (Dma(UNMAPPED, 4096, Direction.READ), Dma(UNMAPPED, 1, Direction.READ)):
        one.check(fits)


def test_a_burst_that_a_source_cannot_perform_is_refused() -> None:
    with pytest.raises(HarnessError, match="cannot write"):
        LINES.burst(1, direction=Direction.WRITE)
    with pytest.raises(HarnessError, match="4160 bytes"):
        LINES.burst(65)


def test_only_a_probe_shows_whether_it_reaches_memory() -> None:
    with pytest.raises(HarnessError, match="cannot show whether it reaches memory by its words"):
        WORDS.reaches()
