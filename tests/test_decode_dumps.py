"""A line of a dump is taken apart into numbers, and records are put together from them."""

from __future__ import annotations

import pytest

from harness.smmu.decode.dumps import Units, units_of
from harness.smmu.events import EventRecord

W = (0x2200_0000_0010, 0x200_0000_0000, 0x1000_0000, 0)
DATA = EventRecord(W).to_bytes()
WORDS = " ".join(f"{word:#018x}" for word in W)


@pytest.mark.parametrize(
    "before",
    [
        *("", "  ", "- ", "* ", "| ", "`", "(", "{ ", "[", "+"),
        *("(qemu) ", "(gdb) ", "(lldb) ", "(GDB) ", "  (gdb) ", "- (gdb) "),
        *("event = ", "w: ", "data[0] = ", "raw: "),
    ],
)
def test_marks_prompts_and_names_stand_before_numbers(before: str) -> None:
    units = units_of(before + WORDS)
    assert isinstance(units, Units)
    assert (units.data, units.whole) == (DATA, True)
    at = units_of(f"{before}0x48000000:\t{WORDS}")
    assert isinstance(at, Units)
    assert (at.data, at.address) == (DATA, 0x4800_0000)
