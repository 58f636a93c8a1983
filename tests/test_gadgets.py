"""What a DMA is, and how many events it is expected to raise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.faults.gadgets import Direction, Dma
from harness.smmu.events import EventType


@given(st.integers(0, 1 << 48), st.integers(1, 400))
def test_one_event_for_each_word_touched(iova: int, length: int) -> None:
    dma = Dma(iova, length, Direction.WRITE)
    expected = dma.expected(EventType.F_TRANSLATION, 0x2100)
    assert len(expected) == dma.faults
    assert expected[0].input_addr == iova
    assert {record.input_addr // 4 for record in expected if record.input_addr is not None} == set(
        range(iova // 4, (iova + length - 1) // 4 + 1)
    )


@pytest.mark.parametrize(("iova", "length"), [(-1, 4), (0, 0), ((1 << 64) - 4, 8)])
def test_impossible_dma_is_refused(iova: int, length: int) -> None:
    with pytest.raises(HarnessError, match="no DMA"):
        Dma(iova, length, Direction.READ)
