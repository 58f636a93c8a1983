"""Make commands to an SMMUv3, and find their places in its command queue. Values only.

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
    """The opcodes in bits 7:0 of a command's first word. The specification's names begin with
    CMD_."""

    CFGI_STE = 0x03
    CFGI_CD_ALL = 0x06
    TLBI_NH_ASID = 0x11
    TLBI_NH_VA = 0x12
    TLBI_EL2_ALL = 0x20
    TLBI_S12_VMALL = 0x28
    ATC_INV = 0x40
    SYNC = 0x46


def opcode(low: int) -> int:
    """Return the opcode in a command's first word. A guest can write opcodes that have no name."""
    return low & 0xFF


# -- commands --------------------------------------------------------------------------------


def cfgi_ste(sid: int) -> Command:
    """Return CMD_CFGI_STE with Leaf: the SMMU forgets the cached STE of a StreamID."""
    return (Opcode.CFGI_STE | sid << 32, 1)


def cfgi_cd_all(sid: int) -> Command:
    """Return CMD_CFGI_CD_ALL: the SMMU forgets all cached context descriptors of a StreamID."""
    return (Opcode.CFGI_CD_ALL | sid << 32, 0)


def tlbi_nh_asid(asid: int) -> Command:
    """Return CMD_TLBI_NH_ASID: the SMMU forgets the cached translations of an address space. A
    guest leaves the VMID 0; QEMU or the CMDQV sets it."""
    return (Opcode.TLBI_NH_ASID | asid << 48, 0)


def atc_inv(sid: int) -> Command:
    """Return CMD_ATC_INV: the device of a StreamID forgets all translations that it has cached."""
    return (Opcode.ATC_INV | sid << 32, 0x3F)


def sync() -> Command:
    """Return CMD_SYNC without a completion signal."""
    return (Opcode.SYNC, 0)


# -- in memory -------------------------------------------------------------------------------


def encode(commands: Iterable[Command]) -> bytes:
    """Return commands as they are in memory, one after the other."""
    return b"".join(_COMMAND.pack(*command) for command in commands)


def decode(data: bytes) -> list[Command]:
    """Return the commands in a piece of memory. Raises struct.error unless its size is a multiple
    of a command's."""
    return list(_COMMAND.iter_unpack(data))


def cmdq_ring(cmdq_base: int) -> Ring:
    """Return the ring of an SMMU's command queue, from CMDQ_BASE."""
    return Ring.from_base(cmdq_base, COMMAND_BYTES)


def words_at(ring: Ring, index: int, commands: Sequence[Command]) -> list[tuple[int, int]]:
    """Return the (address, 64-bit value) pairs that put commands into a ring from `index` on."""
    return [
        (ring.entry(index + number) + 8 * at, word)
        for number, command in enumerate(commands)
        for at, word in enumerate(command)
    ]
