"""The registers of a Tegra241 CMDQV. Values only. The commands of its queues are those of the SMMU
(commands.py).

Sources: drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c in Linux, whose names are used here;
tegra241-cmdqv.h in QEMU.
"""

from __future__ import annotations

import enum
import functools

from harness.smmu.commands import COMMAND_BYTES
from harness.smmu.ring import Ring


class QueueError(enum.IntEnum):
    """The values of VCMDQ_CONS.ERR, which are those of CMDQ_CONS.ERR of the SMMU."""

    NONE = 0
    ILLEGAL = 1
    ABORT = 2
    ATC_INV_SYNC = 3


# -- layout ----------------------------------------------------------------------------------

KIB64 = 0x1_0000
CONFIG_PAGE, VCMDQ_PAGE0, VCMDQ_PAGE1 = 0, KIB64, 2 * KIB64
VINTF_PAGES = 3 * KIB64  # for each virtual interface a page 0 and a page 1
VCMDQ_STRIDE = 0x80


class Config(enum.IntEnum):
    """The offsets of registers on the config page. For those with a stride it is the first one's
    offset."""

    CONFIG = 0x0000
    PARAM = 0x0004
    STATUS = 0x0008
    VINTF_ERR_MAP = 0x0014
    VINTF_INT_MASK = 0x001C
    CMDQ_ERR_MAP = 0x0024
    CMDQ_ALLOC = 0x0200
    VINTF = 0x1000


VINTF_STRIDE = 0x100


class VintfRegister(enum.IntEnum):
    """The offsets of one virtual interface's registers, from VINTF(v) on."""

    CONFIG = 0x00
    STATUS = 0x04
    SID_MATCH = 0x40
    SID_REPLACE = 0x80
    LVCMDQ_ERR_MAP = 0xC0


class Page0(enum.IntEnum):
    """The offsets of one VCMDQ's registers on its page 0, which its owner uses."""

    CONS = 0x00
    PROD = 0x04
    CONFIG = 0x08
    STATUS = 0x0C
    GERROR = 0x10
    GERRORN = 0x14


class Page1(enum.IntEnum):
    """The offsets of one VCMDQ's registers on its page 1, which the hypervisor sets. They have 64
    bits."""

    BASE = 0x00
    CONS_INDX_BASE = 0x08


ENABLE = 1 << 0
#: In CMDQ_ALLOC: the queue belongs to a virtual interface.
ALLOCATED = 1 << 0
#: In GERROR: the queue could not be set up.
INIT_ERR = 1 << 2
#: The errors in GERROR, by bit, as registers.GERRORS has those of an SMMU.
GERRORS = {
    0: ("CMDQ_ERR", "a command failed: the queue takes no more until it is acknowledged"),
    1: ("CONS_DRAM_WR_ABT_ERR", "the queue's CONS could not be written to memory"),
    2: ("CMDQ_INIT_ERR", "the queue could not be set up"),
}


@functools.lru_cache(maxsize=256)
def vcmdq_ring(base: int) -> Ring:
    """Return the ring of a VCMDQ, from its BASE, whose address has 48 bits.

    Rings are cached by BASE because the silicon model asks at each access to a register.
    """
    return Ring.from_base(base, COMMAND_BYTES, address_bits=48)
