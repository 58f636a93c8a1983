"""Edit the tables of a guest's SMMU so that a DMA meets a chosen fault.

The device's DMA domain maps the MSI doorbells only, so its root table has free entries. One page
that the guest pins becomes a level-1 table of 1 GiB blocks, each with another defect, and one entry
of the root table points to it. Nothing has to be invalidated: an SMMU caches no faulting and no
invalid entries (IHI 0070, section 3.17).
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import HarnessError, ProductError
from harness.guest.event_queue import EventQueue
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, until32, write32, write64
from harness.guest.pages import pin_page
from harness.smmu import tables
from harness.smmu.registers import GBPA, GBPA_UPDATE, STRTAB_BASE, STRTAB_BASE_CFG
from harness.smmu.tables import READ_WRITE, Leaf

#: Our entry of the root table (bits 47:39 of an IOVA). Linux gives out IOVAs below 4 GiB only.
_ROOT_INDEX = 0x0AA
#: An output address beyond an output size of 44 bits. A descriptor can hold it.
_TOO_FAR = 1 << 47


@dataclass(frozen=True)
class Window:
    """A range of 1 GiB of input addresses whose DMA meets a known fault."""

    index: int
    output: int
    attributes: Leaf

    @property
    def iova(self) -> int:
        """Return the first input address of the window."""
        return _ROOT_INDEX * tables.LEVEL0_SPAN + self.index * tables.LEVEL1_BLOCK

    @property
    def iovas(self) -> range:
        """Return all input addresses of the window."""
        return range(self.iova, self.iova + tables.LEVEL1_BLOCK)

    @property
    def offset(self) -> int:
        """Return what must be added to an address that the window maps to, for its IOVA."""
        return self.iova - self.output


class GuestTables:
    """The translation tables of one device of a guest, to be edited. Tests may share a guest that
    has the windows, and after any other edit none can use it. Raises ProductError if the device has
    no valid context descriptor."""

    #: The windows, by what a write to their `iova` meets.
    UNMAPPED = Window(0, 0, Leaf(0))
    READ_ONLY = Window(1, 0x4000_0000, READ_WRITE | Leaf.READ_ONLY)
    NOT_ACCESSED = Window(2, 0x4000_0000, READ_WRITE & ~Leaf.ACCESSED)
    OUT_OF_RANGE = Window(3, _TOO_FAR, READ_WRITE)
    MAPPED = Window(4, 0x4000_0000, READ_WRITE)
    #: Mapped to guest physical addresses below the memory, where registers of devices are.
    DEVICES = Window(5, 0, READ_WRITE)

    def __init__(self, guest: Guest, queue: EventQueue, sid: int) -> None:
        self.guest, self.queue, self.sid = guest, queue, sid
        self._ste = self._find_ste()
        self._cd = tables.context_descriptor(self._read(self._ste))
        if not self._read(self._cd) & tables.CD0_VALID:
            raise ProductError(f"StreamID {self.sid:#x} has no valid context descriptor to edit")

    # -- guest memory ----------------------------------------------------------------------

    def _read(self, address: int) -> int:
        return int.from_bytes(self.queue.memory(address, 8), "little")

    def _write(self, *words: tuple[int, int]) -> None:
        """Have the guest write (address, 64-bit value), in order."""
        Mmio(self.guest).run(*(write64(address, value) for address, value in words))

    def _find_ste(self) -> int:
        table = tables.StreamTable.from_registers(
            self.queue.register(STRTAB_BASE, 8),
            self.queue.register(STRTAB_BASE_CFG),
        )
        level1 = table.level1(self.sid)
        return table.ste(self.sid, self._read(level1) if level1 is not None else 0)

    # -- edits -----------------------------------------------------------------------------

    def install_windows(self) -> None:
        """Install the windows, if they are not. Raises HarnessError if the device's root table is
        not at level 0."""
        entry = self.root_table + 8 * _ROOT_INDEX
        if self._read(entry):
            return
        page = pin_page(self.guest)
        windows = (
            *(self.READ_ONLY, self.NOT_ACCESSED, self.OUT_OF_RANGE),
            *(self.MAPPED, self.DEVICES),
        )
        entries = [
            (page + 8 * window.index, tables.block_descriptor(window.output, window.attributes))
            for window in windows
        ]
        self._write(*entries, (entry, tables.table_descriptor(page)))

    def remove_windows(self) -> None:
        """Remove the windows. Translations that the SMMU has cached stay until they are
        invalidated."""
        self._write((self.root_table + 8 * _ROOT_INDEX, 0))

    @property
    def root_table(self) -> int:
        """Return the address of the device's root table. Raises HarnessError if that is not at
        level 0."""
        bits = tables.input_bits(self._read(self._cd))
        if bits <= 39:
            raise HarnessError(f"a device with {bits}-bit input addresses has no level-0 table")
        return tables.root_table(self._read(self._cd + 8))

    @property
    def asid(self) -> int:
        """Return the ASID of the device's cached translations."""
        return tables.asid(self._read(self._cd))

    def break_context_descriptor(self) -> None:
        """Clear CD.V: every DMA of the device meets C_BAD_CD after the SMMU has reread the CD."""
        self._write((self._cd, self._read(self._cd) & ~tables.CD0_VALID))

    def break_stream_table_entry(self) -> None:
        """Set STE.Config to stage 2 only, which QEMU does not offer a guest: CFGI_STE fails."""
        ste0 = self._read(self._ste) & ~tables.STE0_CONFIG
        self._write((self._ste, ste0 | tables.STE0_CONFIG_S2))

    def invalidate_stream_table_entry(self) -> None:
        """Clear STE.V: after CFGI_STE every DMA of the device meets C_BAD_STE."""
        self._write((self._ste, self._read(self._ste) & ~tables.STE0_VALID))

    def oversize_stream_table_entry(self) -> None:
        """Set STE.S1CDMax beyond what any SMMU supports: after CFGI_STE every DMA of the device
        meets C_BAD_STE."""
        self._write((self._ste, self._read(self._ste) | tables.STE0_S1CDMAX))

    def abort_stream_table_entry(self) -> None:
        """Set STE.Config to abort: after CFGI_STE the SMMU aborts all DMA without an event."""
        self._write((self._ste, self._read(self._ste) & ~tables.STE0_CONFIG))


def write_gbpa(guest: Guest, queue: EventQueue, value: int) -> None:
    """Have the guest write its SMMU's global bypass attribute: GBPA_ABORT, or 0 for bypass."""
    gbpa = queue.base + GBPA
    Mmio(guest).run(write32(gbpa, value | GBPA_UPDATE), until32(gbpa, GBPA_UPDATE, 0))
