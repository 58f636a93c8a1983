"""The ACPI tables that make QEMU's virt board a Grace-like host: an IORT with CANWBS, and, if the
host has a CMDQV, its SSDT.

iommufd refuses a nested SMMUv3 unless the root complex can force write-back attributes (CANWBS) or
the SMMU has FWB; QEMU's own IORT claims neither. The whole table is replaced, also because the ID
maps of QEMU's table are wrong until firmware has numbered the buses. Linux takes the tables from an
uncompressed cpio that stands first in the initrd
(Documentation/admin-guide/acpi/initrd_table_override.rst).

Layouts: IO Remapping Table, Arm DEN 0049, revision E.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.artifacts.cpio import Entry, newc
from harness.virtual import aml

#: DEN 0049 table 12, memory access flags: coherent, device attributes follow the CPU's, CANWBS.
_CPM, _DACS, _CANWBS = 1, 2, 4

_ITS_GROUP, _ROOT_COMPLEX, _SMMUV3 = 0, 2, 4
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_NODE = struct.Struct("<BHBIII")
_ID_MAPPING = struct.Struct("<5I")


@dataclass(frozen=True)
class SmmuNode:
    """One SMMUv3: the address of its registers, the GSIV of the first of its four SPIs, and the
    buses whose devices it translates for."""

    base: int
    first_gsiv: int
    buses: range


def smmu_of_virt_board(index: int, buses: range) -> SmmuNode:
    """Return the `index`-th arm-smmuv3 that QEMU's virt board puts on its platform bus.

    hw/arm/virt.c: platform bus at 0x0c000000, its interrupts from SPI 112 (GSIV 144); each
    SMMU takes 0x20000 bytes and four interrupts: event, PRI, command sync, global error.
    """
    return SmmuNode(0x0C00_0000 + 0x2_0000 * index, 144 + 4 * index, buses)


def _mapping(first: int, last: int, target: int) -> bytes:
    return _ID_MAPPING.pack(first, last - first, first, target, 0)


def _node(kind: int, revision: int, identifier: int, body: bytes, maps: list[bytes]) -> bytes:
    offset = _NODE.size + len(body) if maps else 0
    length = _NODE.size + len(body) + sum(map(len, maps))
    head = _NODE.pack(kind, length, revision, identifier, len(maps), offset)
    return head + body + b"".join(maps)


def iort(smmus: list[SmmuNode]) -> bytes:
    """Return an IORT with one ITS and these SMMUs. The root complex's IDs that no SMMU translates
    go to the ITS."""
    first_node = _HEADER.size + 12
    nodes = [_node(_ITS_GROUP, 1, 0, struct.pack("<II", 1, 0), [])]
    its = first_node
    offset = first_node + len(nodes[0])
    requester_maps = []
    untranslated = 0  # first requester ID not yet mapped
    for identifier, smmu in enumerate(smmus, start=1):
        first, last = smmu.buses.start << 8, (smmu.buses.stop << 8) - 1
        if untranslated < first:
            requester_maps.append(_mapping(untranslated, first - 1, its))
        requester_maps.append(_mapping(first, last, offset))
        untranslated = last + 1
        event, pri, sync, gerror = range(smmu.first_gsiv, smmu.first_gsiv + 4)
        body = struct.pack(
            "<QIIQIIIIIII",
            smmu.base,
            1,  # COHACC override
            0,
            0,  # VATOS
            0,  # model: generic
            event,
            pri,
            gerror,
            sync,
            0,  # proximity domain
            0,  # device ID mapping index
        )
        nodes.append(_node(_SMMUV3, 4, identifier, body, [_mapping(0, 0xFFFF, its)]))
        offset += len(nodes[-1])
    requester_maps.append(_mapping(untranslated, 0xFFFF, its))
    body = struct.pack(
        "<IBHBIIBHB",
        1,  # cache coherent
        0,
        0,
        _CPM | _DACS | _CANWBS,
        0,  # no ATS
        0,  # PCI segment
        64,  # memory address size limit
        0,
        0,
    )
    nodes.append(_node(_ROOT_COMPLEX, 3, len(smmus) + 1, body, requester_maps))
    content = struct.pack("<III", len(nodes), first_node, 0) + b"".join(nodes)
    return _table(b"IORT", 5, content)


def cmdqv_ssdt(smmu_identifier: int, config_space: int, window: int, interrupt: int) -> bytes:
    """Return an SSDT that describes the Tegra241 CMDQV of one SMMU. Its registers are `window`
    bytes in BAR 0 of the PCI function whose configuration space is at `config_space`; firmware has
    assigned the BAR before Linux evaluates this table. `interrupt` is a GSI.

    drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c, acpi_smmu_dsdt_probe_tegra241_cmdqv: _UID is the
    SMMU's IORT identifier.
    """
    resources = aml.dword_memory(window) + aml.edge_interrupt(interrupt) + aml.END
    registers = {"PCMD": (0x04, 16), "BAR0": (0x10, 32)}
    memory_and_master = 0x6
    device = (
        aml.name_("_HID", aml.string("NVDA200C"))
        + aml.name_("_UID", aml.string(str(smmu_identifier)))
        + aml.name_("_CCA", aml.ONE)
        + aml.memory_fields("PCFG", config_space, 0x100, registers)
        # No driver enables the PCI function, and until it is enabled it decodes no registers.
        + aml.method("_INI", aml.store(aml.integer(memory_and_master), "PCMD"))
        + aml.name_("RBUF", aml.buffer(resources))
        + aml.method(
            "_CRS",
            aml.dword_field("RBUF", aml.MEMORY_MINIMUM, "LOW")
            + aml.dword_field("RBUF", aml.MEMORY_MAXIMUM, "HIGH")
            + aml.and_(aml.variable("BAR0"), aml.integer(0xFFFF_FFF0), "LOW")
            + aml.add(aml.variable("LOW"), aml.integer(window - 1), "HIGH")
            + aml.return_(aml.variable("RBUF")),
        )
    )
    content = aml.scope_sb(aml.device(f"CQV{smmu_identifier}", device))
    return _table(b"SSDT", 2, content, table_id=b"CMDQV")


def _table(
    signature: bytes, revision: int, content: bytes, *, table_id: bytes = b"BXPC    "
) -> bytes:
    # Linux replaces a table only by one with the same IDs and a higher OEM revision.
    fields = (b"BOCHS ", table_id, 2, b"HIL ", 1)
    length = _HEADER.size + len(content)
    table = bytearray(_HEADER.pack(signature, length, revision, 0, *fields) + content)
    table[9] = -sum(table) & 0xFF
    return bytes(table)


def override_cpio(tables: dict[str, bytes]) -> bytes:
    """Return the cpio that Linux reads replacement tables from; `tables` maps names to contents."""
    folders = [Entry(name) for name in ("kernel", "kernel/firmware", "kernel/firmware/acpi")]
    files = [Entry(f"kernel/firmware/acpi/{name}.aml", t, 0o644) for name, t in tables.items()]
    return newc([*folders, *files])
