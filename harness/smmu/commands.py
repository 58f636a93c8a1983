"""Commands to an SMMUv3, and the ring that its command queue is. Values only.

Source: Arm IHI 0070, chapter 4 (commands) and section 6.3.26 (CMDQ_BASE).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence

from harness.smmu.ring import Ring

#: Two 64-bit words.
Command = tuple[int, int]
COMMAND_BYTES = 16
_COMMAND = struct.Struct("<QQ")


class Opcode(enum.IntEnum):
    """Bits 7:0 of a command's first word. The specification prefixes the names with CMD_."""

    CFGI_STE = 0x03
    TLBI_NH_ASID = 0x11
    TLBI_NH_VA = 0x12
    TLBI_EL2_ALL = 0x20
    TLBI_S12_VMALL = 0x28
    ATC_INV = 0x40
    SYNC = 0x46


def opcode(low: int) -> int:
    """Return the opcode in a command's first word; not all that a guest can write have a name."""
    return low & 0xFF


# -- commands --------------------------------------------------------------------------------


def cfgi_ste(sid: int) -> Command:
    """Make CMD_CFGI_STE with Leaf: the STE of a StreamID has changed."""
    return (Opcode.CFGI_STE | sid << 32, 1)


def tlbi_nh_asid(asid: int) -> Command:
    """Make CMD_TLBI_NH_ASID: forget what is cached of an address space. A guest leaves the VMID
    out; QEMU or the CMDQV puts it in."""
    return (Opcode.TLBI_NH_ASID | asid << 48, 0)


def atc_inv(sid: int) -> Command:
    """Make CMD_ATC_INV of everything that a StreamID has cached."""
    return (Opcode.ATC_INV | sid << 32, 0x3F)


def sync() -> Command:
    """Make CMD_SYNC, with no signal."""
    return (Opcode.SYNC, 0)


# -- in memory -------------------------------------------------------------------------------


def encode(commands: Iterable[Command]) -> bytes:
    """Return commands as they lie in memory, one after the other."""
    return b"".join(_COMMAND.pack(*command) for command in commands)


def decode(data: bytes) -> list[Command]:
    """Return the commands of a piece of memory. Raises struct.error unless it holds whole ones."""
    return list(_COMMAND.iter_unpack(data))


def cmdq_ring(cmdq_base: int) -> Ring:
    """Return the ring of an SMMU's command queue, from CMDQ_BASE."""
    return Ring.from_base(cmdq_base, COMMAND_BYTES)


def words_at(ring: Ring, index: int, commands: Sequence[Command]) -> list[tuple[int, int]]:
    """Return (address, 64-bit word) of what puts commands into a ring from an index on."""
    return [
        (ring.entry(index + number) + 8 * at, word)
        for number, command in enumerate(commands)
        for at, word in enumerate(command)
    ]
