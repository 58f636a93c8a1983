"""The registers of a Tegra241 CMDQV that its driver reads and writes.

Names and layouts are those of drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any

from harness.smmu.cmdqv import (
    ENABLE,
    KIB64,
    VCMDQ_PAGE0,
    VCMDQ_STRIDE,
    VINTF_PAGES,
    VINTF_STRIDE,
    Config,
    Page0,
    Page1,
    QueueError,
    VintfRegister,
    vcmdq_ring,
)
from harness.smmu.commands import COMMAND_BYTES
from harness.smmu.registers import CMDQ_CONS_ERR_SHIFT, CMDQ_CONS_RD
from harness.smmu.ring import Ring

#: SMMU_IDR1.CMDQS at its highest: a larger LOG2SIZE counts as this one.
LARGEST_LOG2SIZE = 19

_HYP_OWN = 1 << 17
_CMDQ_ERR = 1 << 0
_U32 = 0xFFFF_FFFF


@dataclass(frozen=True)
class Parameters:
    """The content of CMDQV_PARAM: sizes as powers of two, and the version. Raises ValueError for a
    size or version that does not exist."""

    log2_vintfs: int = 2
    log2_vcmdqs: int = 3
    log2_sids: int = 4
    version: int = 1

    def __post_init__(self) -> None:
        for name, value, highest in (
            ("log2_vintfs", self.log2_vintfs, 3),
            ("log2_vcmdqs", self.log2_vcmdqs, 7),
            ("log2_sids", self.log2_sids, 4),
            ("version", self.version, 15),
        ):
            if not 0 <= value <= highest:
                raise ValueError(f"CMDQV: {name} is {value}; allowed: 0 to {highest}")
        if self.log2_vcmdqs < self.log2_vintfs:
            raise ValueError("CMDQV: fewer VCMDQs than VINTFs")

    @property
    def register(self) -> int:
        return self.log2_sids << 12 | self.log2_vintfs << 8 | self.log2_vcmdqs << 4 | self.version

    @property
    def vintfs(self) -> int:
        return 1 << self.log2_vintfs

    @property
    def vcmdqs(self) -> int:
        return 1 << self.log2_vcmdqs

    @property
    def sids(self) -> int:
        return 1 << self.log2_sids

    @property
    def bytes(self) -> int:
        """Return the size of the register window in bytes: a power of two, as a BAR's size is."""
        return 1 << (VINTF_PAGES + 2 * KIB64 * self.vintfs - 1).bit_length()


@functools.lru_cache(maxsize=256)
def _effective_ring(base: int) -> Ring:
    """Return the ring that a BASE register stands for. Its size is capped, and its address aligned
    to its size, 32 bytes at least (IHI 0070, section 6.3.26). Cached because each access to a
    register asks."""
    ring = vcmdq_ring(base)
    log2size = min(ring.log2size, LARGEST_LOG2SIZE)
    aligned = max(32, COMMAND_BYTES << log2size)
    return Ring(ring.address & ~(aligned - 1), log2size, COMMAND_BYTES)


@dataclass
class Vcmdq:
    """One command queue. `alloc` is its CMDQ_ALLOC register."""

    index: int
    alloc: int = 0
    cons: int = 0
    prod: int = 0
    config: int = 0
    gerror: int = 0
    gerrorn: int = 0
    base: int = 0
    cons_indx_base: int = 0
    #: Not a register: the error that the queue's next command fails with, at a test's request.
    injected: QueueError = QueueError.NONE
    #: Not a register: whether a turn of the queue is due.
    rung: bool = False

    @property
    def allocated(self) -> bool:
        return bool(self.alloc & 1)

    @property
    def vintf(self) -> int:
        return self.alloc >> 15 & 0x3F

    @property
    def lvcmdq(self) -> int:
        return self.alloc >> 1 & 0x7F

    @property
    def in_error(self) -> bool:
        return bool((self.gerror ^ self.gerrorn) & _CMDQ_ERR)

    @property
    def ring(self) -> Ring:
        return _effective_ring(self.base)

    @property
    def pending(self) -> int:
        """Return the number of commands between CONS and PROD. That is more than the queue holds if
        its owner has moved PROD too far."""
        return self.ring.distance(self.cons, self.prod)

    def fail(self, error: QueueError) -> None:
        """Put the queue into an error: set CMDQ_CONS.ERR and toggle CMDQ_ERR in GERROR."""
        self.cons = self.cons & CMDQ_CONS_RD | error << CMDQ_CONS_ERR_SHIFT
        self.gerror ^= _CMDQ_ERR


@dataclass
class Vintf:
    """One virtual interface."""

    index: int
    config: int = 0
    sid_match: list[int] = field(default_factory=list)
    sid_replace: list[int] = field(default_factory=list)

    @property
    def enabled(self) -> bool:
        return bool(self.config & ENABLE)

    @property
    def hyp_own(self) -> bool:
        return bool(self.config & _HYP_OWN)

    @property
    def vmid(self) -> int:
        return self.config >> 1 & 0xFFFF

    def physical_sid(self, virtual: int) -> int | None:
        """Return the StreamID that replaces a guest's StreamID, or None if no SID_MATCH has it."""
        for match, replace in zip(self.sid_match, self.sid_replace, strict=True):
            if match & 1 and match >> 1 & 0xF_FFFF == virtual:
                return replace
        return None


class Registers:
    """All of the device's state. Registers are words of 4 bytes, by their offset in the window."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.reset()

    def reset(self) -> None:
        sids = self.parameters.sids
        self.config = 0
        self.int_mask = 0
        self.vcmdqs = [Vcmdq(index) for index in range(self.parameters.vcmdqs)]
        self.vintfs = [
            Vintf(index, sid_match=[0] * sids, sid_replace=[0] * sids)
            for index in range(self.parameters.vintfs)
        ]

    def state(self) -> dict[str, Any]:
        """Return the content of all registers, for JSON."""
        return {
            "config": self.config,
            "int_mask": self.int_mask,
            "vcmdqs": [dataclasses.asdict(queue) for queue in self.vcmdqs],
            "vintfs": [dataclasses.asdict(vintf) for vintf in self.vintfs],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Set all registers to what `state` returned for a device of the same parameters. Raises
        ValueError, TypeError or LookupError for anything else, and changes nothing then."""
        vcmdqs = [
            Vcmdq(**{**one, "injected": QueueError(one["injected"])}) for one in state["vcmdqs"]
        ]
        vintfs = [Vintf(**one) for one in state["vintfs"]]
        config, int_mask = state["config"], state["int_mask"]
        words = [config, int_mask]
        words += (word for queue in vcmdqs for word in dataclasses.astuple(queue))
        words += (word for one in vintfs for word in (one.index, one.config))
        for one in vintfs:
            words += (*one.sid_match, *one.sid_replace)
        if not all(isinstance(word, int) for word in words):
            raise TypeError("a register is no number")
        sids = self.parameters.sids
        if (
            [queue.index for queue in vcmdqs] != [queue.index for queue in self.vcmdqs]
            or [one.index for one in vintfs] != [one.index for one in self.vintfs]
            or any({len(one.sid_match), len(one.sid_replace)} != {sids} for one in vintfs)
        ):
            raise ValueError("the registers are another device's")
        self.config, self.int_mask, self.vcmdqs, self.vintfs = config, int_mask, vcmdqs, vintfs

    def find(self, vintf: int, lvcmdq: int) -> Vcmdq | None:
        """Return the queue that is allocated as an interface's logical queue, or None."""
        for queue in self.vcmdqs:
            if queue.allocated and (queue.vintf, queue.lvcmdq) == (vintf, lvcmdq):
                return queue
        return None

    def runs(self, queue: Vcmdq) -> bool:
        """Return whether the device takes commands from a queue. It takes none from a queue that
        was there before a reset."""
        return bool(
            self.vcmdqs[queue.index] is queue
            and self.config & ENABLE
            and queue.allocated
            and queue.config & ENABLE
            and queue.vintf < len(self.vintfs)
            and self.vintfs[queue.vintf].enabled
            and not queue.in_error
        )

    def masked(self, queue: Vcmdq) -> bool:
        """Return whether errors of a queue's interface are masked: they raise no interrupt."""
        return bool(self.int_mask >> queue.vintf & 1)

    # -- reading ---------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """Read a word; an offset without a register reads as 0."""
        if offset < VCMDQ_PAGE0:
            return self._read_config(offset)
        queue, page, register = self._locate(offset)
        if queue is None:
            return 0
        if page == 0:
            return self._read_page0(queue, register)
        return self._page1(queue, register & ~7) >> 8 * (register & 4) & _U32

    def _locate(self, offset: int) -> tuple[Vcmdq | None, int, int]:
        """Return the queue, page and register of an offset. A queue is found by its own index, or
        through the page of the interface that it is allocated to."""
        if offset < VINTF_PAGES:
            page, within = divmod(offset - VCMDQ_PAGE0, KIB64)
            index = within // VCMDQ_STRIDE
            queue = self.vcmdqs[index] if index < len(self.vcmdqs) else None
        else:
            vintf, within = divmod(offset - VINTF_PAGES, 2 * KIB64)
            page, within = divmod(within, KIB64)
            queue = self.find(vintf, within // VCMDQ_STRIDE)
        return queue, page, within % VCMDQ_STRIDE

    def _read_config(self, offset: int) -> int:
        if offset >= Config.VINTF:
            index, register = divmod(offset - Config.VINTF, VINTF_STRIDE)
            if index < len(self.vintfs):
                return self._read_vintf(self.vintfs[index], register)
            return 0
        if Config.CMDQ_ALLOC <= offset < Config.CMDQ_ALLOC + 4 * len(self.vcmdqs):
            return self.vcmdqs[(offset - Config.CMDQ_ALLOC) // 4].alloc
        if Config.CMDQ_ERR_MAP <= offset < Config.CMDQ_ERR_MAP + 16:
            errors = sum(1 << queue.index for queue in self.vcmdqs if queue.in_error)
            return errors >> 8 * (offset - Config.CMDQ_ERR_MAP) & _U32
        if offset in (Config.VINTF_ERR_MAP, Config.VINTF_ERR_MAP + 4):
            errors = sum(1 << one.index for one in self.vintfs if self._error_map(one))
            return errors >> 8 * (offset - Config.VINTF_ERR_MAP) & _U32
        if offset in (Config.VINTF_INT_MASK, Config.VINTF_INT_MASK + 4):
            return self.int_mask >> 8 * (offset - Config.VINTF_INT_MASK) & _U32
        registers: dict[int, int] = {
            Config.CONFIG: self.config,
            Config.PARAM: self.parameters.register,
            Config.STATUS: self.config & ENABLE,
        }
        return registers.get(offset, 0)

    def _error_map(self, vintf: Vintf) -> int:
        """Return LVCMDQ_ERR_MAP, which has a bit for each logical queue in error."""
        return sum(
            1 << queue.lvcmdq
            for queue in self.vcmdqs
            if queue.allocated and queue.vintf == vintf.index and queue.in_error
        )

    def _read_vintf(self, vintf: Vintf, register: int) -> int:
        sids = 4 * self.parameters.sids
        if VintfRegister.SID_MATCH <= register < VintfRegister.SID_MATCH + sids:
            return vintf.sid_match[(register - VintfRegister.SID_MATCH) // 4]
        if VintfRegister.SID_REPLACE <= register < VintfRegister.SID_REPLACE + sids:
            return vintf.sid_replace[(register - VintfRegister.SID_REPLACE) // 4]
        if VintfRegister.LVCMDQ_ERR_MAP <= register < VintfRegister.LVCMDQ_ERR_MAP + 16:
            return self._error_map(vintf) >> 8 * (register - VintfRegister.LVCMDQ_ERR_MAP) & _U32
        registers: dict[int, int] = {
            VintfRegister.CONFIG: vintf.config,
            VintfRegister.STATUS: vintf.config & ENABLE,
        }
        return registers.get(register, 0)

    @staticmethod
    def _read_page0(queue: Vcmdq, register: int) -> int:
        registers: dict[int, int] = {
            Page0.CONS: queue.cons,
            Page0.PROD: queue.prod,
            Page0.CONFIG: queue.config,
            Page0.STATUS: queue.config & ENABLE,
            Page0.GERROR: queue.gerror,
            Page0.GERRORN: queue.gerrorn,
        }
        return registers.get(register, 0)

    @staticmethod
    def _page1(queue: Vcmdq, register: int) -> int:
        registers: dict[int, int] = {
            Page1.BASE: queue.base,
            Page1.CONS_INDX_BASE: queue.cons_indx_base,
        }
        return registers.get(register, 0)

    # -- writing ---------------------------------------------------------------------------

    def write(self, offset: int, value: int) -> Vcmdq | None:
        """Write a word. Return the queue that may have commands to carry out now, or None."""
        if offset < VCMDQ_PAGE0:
            self._write_config(offset, value)
            return None
        queue, page, register = self._locate(offset)
        if queue is None:
            return None
        if page == 0:
            self._write_page0(queue, register, value)
            return queue
        shift = 8 * (register & 4)
        old = self._page1(queue, register & ~7)
        new = old & ~(_U32 << shift) | value << shift
        if register & ~7 == Page1.BASE:
            queue.base = new
        elif register & ~7 == Page1.CONS_INDX_BASE:
            queue.cons_indx_base = new
        return None

    def _write_config(self, offset: int, value: int) -> None:
        if offset >= Config.VINTF:
            index, register = divmod(offset - Config.VINTF, VINTF_STRIDE)
            if index < len(self.vintfs):
                self._write_vintf(self.vintfs[index], register, value)
        elif Config.CMDQ_ALLOC <= offset < Config.CMDQ_ALLOC + 4 * len(self.vcmdqs):
            self.vcmdqs[(offset - Config.CMDQ_ALLOC) // 4].alloc = value
        elif offset == Config.CONFIG:
            self.config = value
        elif offset in (Config.VINTF_INT_MASK, Config.VINTF_INT_MASK + 4):
            shift = 8 * (offset - Config.VINTF_INT_MASK)
            self.int_mask = self.int_mask & ~(_U32 << shift) | value << shift

    def _write_vintf(self, vintf: Vintf, register: int, value: int) -> None:
        sids = 4 * self.parameters.sids
        if register == VintfRegister.CONFIG:
            vintf.config = value
        elif VintfRegister.SID_MATCH <= register < VintfRegister.SID_MATCH + sids:
            vintf.sid_match[(register - VintfRegister.SID_MATCH) // 4] = value
        elif VintfRegister.SID_REPLACE <= register < VintfRegister.SID_REPLACE + sids:
            vintf.sid_replace[(register - VintfRegister.SID_REPLACE) // 4] = value

    @staticmethod
    def _write_page0(queue: Vcmdq, register: int, value: int) -> None:
        if register == Page0.CONS:
            queue.cons = value
        elif register == Page0.PROD:
            queue.prod = value
        elif register == Page0.CONFIG:
            queue.config = value
            if not value & ENABLE:
                queue.injected = QueueError.NONE  # the error must not hit the queue's next owner
        elif register == Page0.GERRORN:
            queue.gerrorn = value
