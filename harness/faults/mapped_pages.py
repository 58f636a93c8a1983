"""Map pages of 4 KiB in a guest's stage 1 behind its kernel's back, and take them away again, for
tests that see what an SMMU still uses of them.

The pages have tables of their own at each level (Arm DDI 0487, section D8.3), and an entry of the
root table that leads to these only.
"""

from __future__ import annotations

from harness.faults.guest_tables import GuestTables
from harness.guest.mmio import Mmio, series, write64
from harness.guest.pages import pin_page
from harness.smmu import tables

#: Our entry of the root table: another one than that of the windows of GuestTables.
_ROOT_INDEX = 0x0AB


class MappedPages:
    """Adjacent pages of one device's IOVAs, `count` of them, 512 at most. All lead to one page that
    the guest pins. No other test can use the guest afterwards. Errors are those of GuestTables."""

    IOVA = _ROOT_INDEX * tables.LEVEL0_SPAN

    def __init__(self, guest_tables: GuestTables, count: int) -> None:
        guest = guest_tables.guest
        self._memory, self._root = Mmio(guest), guest_tables.root_table + 8 * _ROOT_INDEX
        target, level1, level2, self._level3 = (pin_page(guest) for _ in range(4))
        page = tables.page_descriptor(target, tables.READ_WRITE)
        self._memory.run(
            series(self._level3, 8, count, page, 0),
            write64(level2, tables.table_descriptor(self._level3)),
            write64(level1, tables.table_descriptor(level2)),
            write64(self._root, tables.table_descriptor(level1)),
        )

    def iova(self, number: int) -> int:
        """Return the first input address of page `number`, from 0."""
        return self.IOVA + number * tables.PAGE_BYTES

    def unmap(self, first: int, count: int = 1) -> None:
        """Take `count` pages away: their own descriptors become invalid."""
        self._memory.run(series(self._level3 + 8 * first, 8, count, 0, 0))

    def unmap_table(self) -> None:
        """Take all pages away: the root table no longer leads to their tables."""
        self._memory.run(write64(self._root, 0))
