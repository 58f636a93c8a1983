"""Pages that a test maps in a guest are where a walk of its tables finds them, and nowhere else."""

from __future__ import annotations

import itertools
import shlex
from typing import cast

import pytest

from harness.faults.guest_tables import GuestTables
from harness.faults.mapped_pages import MappedPages
from harness.guest.console import Output
from harness.guest.guest import Guest

ROOT, PINNED = 0x4000_0000, 0x4100_0000
TABLE = PAGE = 0b11
ADDRESS = ((1 << 48) - 1) & ~0xFFF


class Memory:
    """A guest's memory, by 64-bit words, and its device's root table."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}
        self.pages = itertools.count(PINNED, 4096)
        self.guest = cast(Guest, self)
        self.root_table = ROOT

    def run(self, command: str, *, timeout: float = 30.0, what: str = "") -> Output:
        if "hil pin" in command:
            return Output(command, 0, f"{next(self.pages):#x}\n".encode())
        for op in shlex.split(command)[3:]:
            kind, _, rest = op.partition(":")
            place, value = ([int(word, 0) for word in part.split(",")] for part in rest.split("="))
            at, stride, count = place if kind == "series" else (*place, 0, 1)
            first, step = value if kind == "series" else (*value, 0)
            for number in range(count):
                self.words[at + number * stride] = first + number * step
        return Output(command, 0, b"")

    def walk(self, iova: int) -> int | None:
        """Return the address of the page at an IOVA, in 48 bits of 4 KiB granules; None if there is
        none."""
        table = self.root_table
        for level in range(4):
            descriptor = self.words.get(table + 8 * (iova >> (39 - 9 * level) & 0x1FF), 0)
            if descriptor & 0b11 != (PAGE if level == 3 else TABLE):
                return None
            table = descriptor & ADDRESS
        return table


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def pages(memory: Memory) -> MappedPages:
    return MappedPages(cast(GuestTables, memory), 200)


def test_all_lead_to_one_page_that_is_no_table(memory: Memory, pages: MappedPages) -> None:
    found = {memory.walk(pages.iova(number)) for number in range(200)}
    assert found == {PINNED}
    assert not any(PINNED <= address < PINNED + 4096 for address in memory.words)
    assert memory.walk(pages.iova(200)) is None
    assert memory.walk(pages.iova(0) - 4096) is None


def test_some_are_taken_away(memory: Memory, pages: MappedPages) -> None:
    pages.unmap(63, 3)
    gone = [number for number in range(200) if memory.walk(pages.iova(number)) is None]
    assert gone == [63, 64, 65]


def test_all_are_taken_away_by_the_root_table(memory: Memory, pages: MappedPages) -> None:
    before = dict(memory.words)
    pages.unmap_table()
    assert memory.walk(pages.iova(0)) is None
    changed = [at for at, word in memory.words.items() if before[at] != word]
    assert all(ROOT <= at < ROOT + 4096 for at in changed)
    assert len(changed) == 1
