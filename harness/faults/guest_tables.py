"""Faults of a guest's own making: its SMMU tables edited so that a DMA meets a chosen fault.

The device's DMA domain has the doorbells mapped and no more, so its root table has room. One page
that the guest pins becomes a level-1 table of 1 GiB blocks, each with another defect; one entry of
the root points to it.
Nothing is invalidated: an SMMU caches no faulting and no invalid entries (IHI 0070, section 3.17).
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import HarnessError
from harness.guest.event_queue import EventQueue
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, until32, write32, write64
from harness.smmu import tables
from harness.smmu.registers import GBPA, GBPA_UPDATE, STRTAB_BASE, STRTAB_BASE_CFG
from harness.smmu.tables import READ_WRITE, Leaf

#: Entry of the root table (bits 47:39 of an IOVA) that is ours. Linux hands out IOVAs below 4 GiB.
_ROOT_INDEX = 0x0AA
#: Beyond the 44 or 48 bits that any output size here has, within what a descriptor can hold.
_TOO_FAR = 1 << 47


@dataclass(frozen=True)
class Window:
    """Input addresses that fault in a known way; each 1 GiB."""

    index: int
    output: int
    attributes: Leaf

    @property
    def iova(self) -> int:
        return _ROOT_INDEX * tables.LEVEL0_SPAN + self.index * tables.LEVEL1_BLOCK


class GuestTables:
    """Edits the translation of one device of a guest. Spoils the guest for other tests."""

    #: What a write to each window's `iova` meets.
    UNMAPPED = Window(0, 0, Leaf(0))
    READ_ONLY = Window(1, 0x4000_0000, READ_WRITE | Leaf.READ_ONLY)
    NOT_ACCESSED = Window(2, 0x4000_0000, READ_WRITE & ~Leaf.ACCESSED)
    OUT_OF_RANGE = Window(3, _TOO_FAR, READ_WRITE)
    MAPPED = Window(4, 0x4000_0000, READ_WRITE)
    #: Guest physical addresses below the memory: registers of devices.
    DEVICES = Window(5, 0, READ_WRITE)

    def __init__(self, guest: Guest, queue: EventQueue, sid: int) -> None:
        self.guest, self.queue, self.sid = guest, queue, sid
        self._ste = self._find_ste()
        self._cd = tables.context_descriptor(self._read(self._ste))
        if not self._read(self._cd) & tables.CD0_VALID:
            raise HarnessError(f"SID {self.sid:#x} has no valid context descriptor to edit")

    # -- guest memory ----------------------------------------------------------------------

    def _read(self, address: int) -> int:
        return int.from_bytes(self.queue.memory(address, 8), "little")

    def _write(self, *words: tuple[int, int]) -> None:
        """Eight bytes each, in order, by the guest itself."""
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
        """Make the windows. Raises HarnessError if the device's root table is not level 0."""
        bits = tables.input_bits(self._read(self._cd))
        if bits <= 39:
            raise HarnessError(f"{bits}-bit input addresses leave no level-0 table")
        page = pin_page(self.guest)
        windows = (
            *(self.READ_ONLY, self.NOT_ACCESSED, self.OUT_OF_RANGE),
            *(self.MAPPED, self.DEVICES),
        )
        entries = [
            (page + 8 * window.index, tables.block_descriptor(window.output, window.attributes))
            for window in windows
        ]
        root = tables.root_table(self._read(self._cd + 8))
        self._write(*entries, (root + 8 * _ROOT_INDEX, tables.table_descriptor(page)))

    def remove_windows(self) -> None:
        """Take them away again. What the SMMU has cached of them stays until it is invalidated."""
        root = tables.root_table(self._read(self._cd + 8))
        self._write((root + 8 * _ROOT_INDEX, 0))

    @property
    def asid(self) -> int:
        """The address space that cached translations belong to."""
        return tables.asid(self._read(self._cd))

    def break_context_descriptor(self) -> None:
        """Clear CD.V: every DMA of the device meets C_BAD_CD, once the SMMU reads it anew."""
        self._write((self._cd, self._read(self._cd) & ~tables.CD0_VALID))

    def break_stream_table_entry(self) -> None:
        """Set STE.Config to stage 2 only, which a guest of QEMU's cannot have: CFGI_STE fails."""
        ste0 = self._read(self._ste) & ~tables.STE0_CONFIG
        self._write((self._ste, ste0 | tables.STE0_CONFIG_S2))

    def abort_stream_table_entry(self) -> None:
        """Set STE.Config to abort: once the SMMU is told, DMA ends here, without an event."""
        self._write((self._ste, self._read(self._ste) & ~tables.STE0_CONFIG))


def write_gbpa(guest: Guest, queue: EventQueue, value: int) -> None:
    """Have the guest set its SMMU's global bypass attribute: GBPA_ABORT, or 0 for bypass."""
    gbpa = queue.base + GBPA
    Mmio(guest).run(write32(gbpa, value | GBPA_UPDATE), until32(gbpa, GBPA_UPDATE, 0))


def pin_page(guest: Guest) -> int:
    """Physical address of a zeroed page that stays where it is as long as the guest runs."""
    wait = "until [ -s /tmp/pinned ]; do usleep 10000; done"
    pin = "rm -f /tmp/pinned; hil pin >/tmp/pinned 2>&1 &"
    pinned = guest.run(f"{pin} {wait}; cat /tmp/pinned").text
    if not pinned.startswith("0x"):
        raise HarnessError(f"the guest pins no page: {pinned}")
    return int(pinned, 16)
