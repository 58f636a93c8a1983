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

    PREFETCH_CONFIG = 0x01
    PREFETCH_ADDR = 0x02
    CFGI_STE = 0x03
    CFGI_STE_RANGE = 0x04
    CFGI_CD = 0x05
    CFGI_CD_ALL = 0x06
    CFGI_VMS_PIDM = 0x07
    TLBI_NH_ALL = 0x10
    TLBI_NH_ASID = 0x11
    TLBI_NH_VA = 0x12
    TLBI_NH_VAA = 0x13
    TLBI_EL3_ALL = 0x18
    TLBI_EL3_VA = 0x1A
    TLBI_EL2_ALL = 0x20
    TLBI_EL2_ASID = 0x21
    TLBI_EL2_VA = 0x22
    TLBI_EL2_VAA = 0x23
    TLBI_S12_VMALL = 0x28
    TLBI_S2_IPA = 0x2A
    TLBI_NSNH_ALL = 0x30
    ATC_INV = 0x40
    PRI_RESP = 0x41
    RESUME = 0x44
    STALL_TERM = 0x45
    SYNC = 0x46


#: The Size of a CMD_ATC_INV for all addresses. None may be larger (section 4.5.1).
ATC_INV_ALL = 52


#: The error codes in CMDQ_CONS.ERR (section 7.1), and what each means.
CERRORS = {
    0: ("CERROR_NONE", "no error"),
    1: ("CERROR_ILL", "the command is illegal: the SMMU does not know or support it"),
    2: ("CERROR_ABT", "the fetch of the command was aborted: look at the queue's memory"),
    3: ("CERROR_ATC_INV_SYNC", "a device did not answer an ATC invalidation in time"),
}


def opcode(low: int) -> int:
    """Return the opcode in a command's first word. A guest can write opcodes that have no name."""
    return low & 0xFF


_PREFETCH = frozenset({Opcode.PREFETCH_CONFIG, Opcode.PREFETCH_ADDR})
_BY_STREAM = _PREFETCH | {
    Opcode.CFGI_STE,
    Opcode.CFGI_STE_RANGE,
    Opcode.CFGI_CD,
    Opcode.CFGI_CD_ALL,
    Opcode.ATC_INV,
    Opcode.PRI_RESP,
    Opcode.RESUME,
    Opcode.STALL_TERM,
}
_BY_SUBSTREAM = frozenset({Opcode.CFGI_CD})
_IF_SSV = _PREFETCH | {Opcode.ATC_INV, Opcode.PRI_RESP}
_BY_ASID = frozenset(
    {Opcode.TLBI_NH_ASID, Opcode.TLBI_NH_VA, Opcode.TLBI_EL2_ASID, Opcode.TLBI_EL2_VA}
)
_BY_VMID = frozenset(
    {
        Opcode.TLBI_NH_ALL,
        Opcode.TLBI_NH_ASID,
        Opcode.TLBI_NH_VA,
        Opcode.TLBI_NH_VAA,
        Opcode.TLBI_S12_VMALL,
        Opcode.TLBI_S2_IPA,
    }
)
_BY_ADDRESS = frozenset(
    {
        Opcode.TLBI_NH_VA,
        Opcode.TLBI_NH_VAA,
        Opcode.TLBI_EL2_VA,
        Opcode.TLBI_EL2_VAA,
        Opcode.TLBI_EL3_VA,
    }
)


def describe(command: Command) -> str:
    """Return a command's name and operands in words. Of an opcode that has no name it returns the
    number and both words."""
    low, high = command
    try:
        code = Opcode(opcode(low))
    except ValueError:
        return f"an unknown command, opcode {opcode(low):#04x}  raw {low:#018x} {high:#018x}"
    parts = [f"CMD_{code.name}"]
    if code in _BY_STREAM:
        parts.append(f"sid {low >> 32:#x}")
    if code in _BY_SUBSTREAM or (code in _IF_SSV and low & 1 << 11):
        parts.append(f"ssid {low >> 12 & 0xFFFFF:#x}")
    if code in _BY_VMID:
        parts.append(f"vmid {low >> 32 & 0xFFFF:#x}")
    if code in _BY_ASID:
        parts.append(f"asid {low >> 48:#x}")
    if code in _BY_ADDRESS:
        parts.append(f"address {high & ~0xFFF:#x}")
    if code == Opcode.TLBI_S2_IPA:
        parts.append(f"ipa {high & ((1 << 52) - 1) & ~0xFFF:#x}")
    if code == Opcode.ATC_INV:
        parts.append(f"address {high & ~0xFFF:#x}  size 2^{high & 0x3F} pages")
    if code in (Opcode.CFGI_STE, Opcode.CFGI_CD):
        parts.append("leaf" if high & 1 else "all levels")
    if code == Opcode.CFGI_STE_RANGE:
        parts.append("all streams" if high & 0x1F == 31 else f"2^{(high & 0x1F) + 1} streams")
    if code == Opcode.RESUME:
        parts.append(f"stag {high & 0xFFFF:#x}")
    return "  ".join(parts)


# -- commands --------------------------------------------------------------------------------


def cfgi_ste(sid: int, *, leaf: bool = True) -> Command:
    """Return CMD_CFGI_STE: the SMMU forgets the cached STE of a StreamID, and unless `leaf` what it
    has cached of the level-1 descriptor that leads there."""
    return (Opcode.CFGI_STE | sid << 32, int(leaf))


def cfgi_ste_range(sid: int, log2: int) -> Command:
    """Return CMD_CFGI_STE_RANGE: the SMMU forgets the cached STEs of the 2^`log2` StreamIDs, 2 to
    2^32, among which `sid` is: those that differ from it in the lowest `log2` bits only. With 2^32
    it is CMD_CFGI_ALL."""
    return (Opcode.CFGI_STE_RANGE | sid << 32, log2 - 1)


def cfgi_cd(sid: int, *, leaf: bool = True) -> Command:
    """Return CMD_CFGI_CD: the SMMU forgets the cached context descriptor of a StreamID, that of
    SubstreamID 0, and unless `leaf` what it has cached of a level-1 descriptor."""
    return (Opcode.CFGI_CD | sid << 32, int(leaf))


def cfgi_all() -> Command:
    """Return CMD_CFGI_ALL: the SMMU forgets all cached configuration. It is CMD_CFGI_STE_RANGE with
    the largest range."""
    return (Opcode.CFGI_STE_RANGE, 31)


def cfgi_cd_all(sid: int) -> Command:
    """Return CMD_CFGI_CD_ALL: the SMMU forgets all cached context descriptors of a StreamID."""
    return (Opcode.CFGI_CD_ALL | sid << 32, 0)


def tlbi_nh_asid(asid: int) -> Command:
    """Return CMD_TLBI_NH_ASID: the SMMU forgets the cached translations of an address space. A
    guest leaves the VMID 0; QEMU or the CMDQV sets it."""
    return (Opcode.TLBI_NH_ASID | asid << 48, 0)


def tlbi_nh_all() -> Command:
    """Return CMD_TLBI_NH_ALL: the SMMU forgets all cached translations of a guest's stage 1."""
    return (Opcode.TLBI_NH_ALL, 0)


def tlbi_nsnh_all() -> Command:
    """Return CMD_TLBI_NSNH_ALL: the SMMU forgets all cached translations that are not Secure and
    not the hypervisor's own."""
    return (Opcode.TLBI_NSNH_ALL, 0)


def tlbi_nh_va(asid: int, address: int, *, leaf: bool = True, pages: int = 0) -> Command:
    """Return CMD_TLBI_NH_VA: the SMMU forgets the cached translation of an address in an address
    space, and unless `leaf` what it has cached of the tables that lead there.

    If `pages` is not 0, the command is for so many pages of 4 KiB, from the address on (range
    invalidation, SMMU_IDR3.RIL): up to 32 times a power of two. Raises ValueError for a number that
    no command can have.
    """
    low, high = _by_address(Opcode.TLBI_NH_VA, address, leaf, pages)
    return (low | asid << 48, high)


def tlbi_nh_vaa(address: int, *, leaf: bool = True, pages: int = 0) -> Command:
    """Return CMD_TLBI_NH_VAA: as CMD_TLBI_NH_VA, in all address spaces of a guest."""
    return _by_address(Opcode.TLBI_NH_VAA, address, leaf, pages)


def _by_address(kind: Opcode, address: int, leaf: bool, pages: int) -> Command:
    """Return an invalidation by address (IHI 0070, section 4.4.1.1). NUM is in bits 16:12 of the
    first word, SCALE in bits 24:20; TTL is in bits 9:8 of the second, TG in bits 11:10."""
    high = address & ~0xFFF | leaf
    if not pages:
        return (kind, high)
    scale = (pages & -pages).bit_length() - 1
    number = pages >> scale
    if number > 32:
        raise ValueError(f"no command invalidates {pages} pages")
    # With NUM and SCALE 0 a TTL is needed: a page is at level 3.
    level = 3 if pages == 1 else 0
    return (kind | (number - 1) << 12 | scale << 20, high | level << 8 | 1 << 10)


def atc_inv(sid: int, address: int = 0, log2_pages: int = ATC_INV_ALL) -> Command:
    """Return CMD_ATC_INV: the device of a StreamID forgets translations that it has cached, of
    2^`log2_pages` pages of 4 KiB from an address on, or all of them. An address is a multiple of
    the size."""
    return (Opcode.ATC_INV | sid << 32, address & ~0xFFF | log2_pages)


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
