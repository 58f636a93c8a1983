"""The ACPI tables that make QEMU's virt board a Grace-like host: an IORT with CANWBS; if the host
has a CMDQV, its SSDT; and, if it has PCI segments, an MCFG and an SSDT for them.

iommufd refuses a nested SMMUv3 unless the root complex can force write-back attributes (CANWBS) or
the SMMU has FWB; QEMU's own IORT claims neither. The whole table is replaced, also because the ID
maps of QEMU's table are wrong until firmware has numbered the buses. Linux takes the tables from an
uncompressed cpio that stands first in the initrd
(Documentation/admin-guide/acpi/initrd_table_override.rst).

QEMU's board has one PCI segment. For the host's kernel, devices can be in others all the same,
because these tables are all that tells it where a segment's configuration space is and how its
buses are numbered. SMMU and ITS still get QEMU's requester IDs from the devices, and the IORT says
which they are.

Layouts: IO Remapping Table, Arm DEN 0049, revision E. MCFG, PCI Firmware Specification 3.3, 4.1.2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.artifacts.cpio import Entry, newc
from harness.virtual import aml

#: DEN 0049 table 12, memory access flags: coherent, device attributes follow the CPU's, CANWBS.
_CPM, _DACS, _CANWBS = 1, 2, 4

_ITS_GROUP, _ROOT_COMPLEX, _SMMUV3 = 0, 2, 4
#: PCI_COMMAND: memory space and bus master.
_MEMORY_AND_MASTER = 0x6
#: The GSI of the first of the four interrupts of QEMU's PCI host bridge (hw/arm/virt.c: SPI 3).
_FIRST_PCI_GSI = 35
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_NODE = struct.Struct("<BHBIII")
_ID_MAPPING = struct.Struct("<5I")


@dataclass(frozen=True)
class SmmuNode:
    """One SMMUv3: the address of its registers, the GSIV of the first of its four SPIs, and the
    buses whose devices it translates for, as QEMU numbers them.

    In PCI segment 0 the host's kernel uses the same numbers; in another `segment` it numbers them
    from 0 on."""

    base: int
    first_gsiv: int
    buses: range
    segment: int = 0

    @property
    def requester_ids(self) -> range:
        """Return the requester IDs of these buses, as QEMU numbers them: the StreamIDs."""
        return range(self.buses.start << 8, self.buses.stop << 8)


def smmu_of_virt_board(index: int, buses: range, segment: int) -> SmmuNode:
    """Return the `index`-th arm-smmuv3 that QEMU's virt board puts on its platform bus.

    hw/arm/virt.c: platform bus at 0x0c000000, its interrupts from SPI 112 (GSIV 144); each
    SMMU takes 0x20000 bytes and four interrupts: event, PRI, command sync, global error.
    """
    return SmmuNode(0x0C00_0000 + 0x2_0000 * index, 144 + 4 * index, buses, segment)


def _mapping(first: int, outputs: range, target: int) -> bytes:
    """Return the mapping of input IDs from `first` on to `outputs` at the node at `target`."""
    return _ID_MAPPING.pack(first, len(outputs) - 1, outputs.start, target, 0)


def _node(kind: int, revision: int, identifier: int, body: bytes, maps: list[bytes]) -> bytes:
    offset = _NODE.size + len(body) if maps else 0
    length = _NODE.size + len(body) + sum(map(len, maps))
    head = _NODE.pack(kind, length, revision, identifier, len(maps), offset)
    return head + body + b"".join(maps)


def iort(smmus: list[SmmuNode]) -> bytes:
    """Return an IORT with one ITS and these SMMUs. The IDs of segment 0's root complex that no SMMU
    translates go to the ITS."""
    its = _HEADER.size + 12
    nodes = [_node(_ITS_GROUP, 1, 0, struct.pack("<II", 1, 0), [])]
    # The ID mappings of each segment's root complex.
    maps: dict[int, list[bytes]] = {0: []}
    untranslated = 0  # first requester ID of segment 0 not yet mapped
    for identifier, smmu in enumerate(smmus, start=1):
        offset = its + sum(map(len, nodes))
        nodes.append(_smmu_node(identifier, smmu, its))
        ids = smmu.requester_ids
        if smmu.segment:
            maps[smmu.segment] = [_mapping(0, ids, offset)]
            continue
        if untranslated < ids.start:
            maps[0].append(_mapping(untranslated, range(untranslated, ids.start), its))
        maps[0].append(_mapping(ids.start, ids, offset))
        untranslated = ids.stop
    maps[0].append(_mapping(untranslated, range(untranslated, 0x1_0000), its))
    for identifier, (segment, mappings) in enumerate(maps.items(), start=len(smmus) + 1):
        nodes.append(_root_complex(identifier, segment, mappings))
    content = struct.pack("<III", len(nodes), its, 0) + b"".join(nodes)
    return _table(b"IORT", 5, content)


def _smmu_node(identifier: int, smmu: SmmuNode, its: int) -> bytes:
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
    return _node(_SMMUV3, 4, identifier, body, [_mapping(0, range(0x1_0000), its)])


def _root_complex(identifier: int, segment: int, mappings: list[bytes]) -> bytes:
    body = struct.pack(
        "<IBHBIIBHB",
        1,  # cache coherent
        0,
        0,
        _CPM | _DACS | _CANWBS,
        0,  # no ATS
        segment,
        64,  # memory address size limit
        0,
        0,
    )
    return _node(_ROOT_COMPLEX, 3, identifier, body, mappings)


def mcfg(ecam: int, smmus: list[SmmuNode]) -> bytes:
    """Return an MCFG: QEMU's entry, segment 0 with all of ECAM from address `ecam` on, and one for
    each other segment of an SMMU, whose buses are the SMMU's in the same ECAM."""
    entries = [(ecam, 0, 0, 0xFF)]
    for smmu in smmus:
        base = ecam + (smmu.buses.start << 20)
        entries += [(base, smmu.segment, 0, len(smmu.buses) - 1)] if smmu.segment else []
    content = bytes(8) + b"".join(struct.pack("<QHBB4x", *entry) for entry in entries)
    return _table(b"MCFG", 1, content)


@dataclass(frozen=True)
class HostBridge:
    """A host bridge that the kernel sees in place of a root port of QEMU's: its segment, the number
    of its one bus, which is the one behind the port, and the address of the port's configuration
    space."""

    segment: int
    bus: int
    port: int


def segments_ssdt(hidden: list[int], bridges: list[HostBridge]) -> bytes:
    """Return an SSDT with these host bridges. It hides QEMU's host bridges of the buses `hidden`,
    and so their root ports (hw/pci-host/gpex-acpi.c names a bridge after its bus).

    A root port cannot be shown in another segment: its registers hold the bus numbers by which QEMU
    finds its devices, and the kernel would correct them. So a device's bus is a host bridge's own.
    QEMU plugs only root ports into the buses of its additional host bridges.
    """
    content = [aml.scope_sb_device(f"PC{bus:02X}", _STA_ABSENT) for bus in hidden]
    content += [
        aml.scope_sb(aml.device(f"B{one.segment:X}{one.bus:02X}", _host_bridge(one)))
        for one in bridges
    ]
    return _table(b"SSDT", 2, b"".join(content), table_id=b"SEGMENTS")


_STA_ABSENT = aml.name_("_STA", aml.integer(0))


def _host_bridge(bridge: HostBridge) -> bytes:
    """Return what is in the device of a host bridge. Firmware has assigned the port's window of
    memory before Linux evaluates it."""
    # The port's Memory Base and Memory Limit: bits 15:4 and 31:20 are each address's bits 31:20.
    megabytes = aml.integer(0xFFF0_0000)
    window, low, high = (aml.variable(name) for name in ("WIN", "LOW", "HIGH"))
    return (
        aml.name_("_HID", aml.string("PNP0A08"))
        + aml.name_("_CID", aml.string("PNP0A03"))
        + aml.name_("_UID", aml.integer(bridge.segment << 8 | bridge.bus))
        + aml.name_("_SEG", aml.integer(bridge.segment))
        + aml.name_("_BBN", aml.integer(bridge.bus))
        + aml.name_("_CCA", aml.ONE)
        + aml.name_("_PRT", aml.package(*map(_interrupt_of, range(4))))
        + aml.memory_fields("PCFG", bridge.port, 0x100, {"PCMD": (0x04, 16), "WIN": (0x20, 32)})
        # No driver enables the port, and until it is enabled it passes no access on.
        + aml.method("_INI", aml.store(aml.integer(_MEMORY_AND_MASTER), "PCMD"))
        + aml.name_(
            "RBUF", aml.buffer(aml.dword_memory_window() + aml.bus_number(bridge.bus) + aml.END)
        )
        + aml.method(
            "_CRS",
            aml.dword_field("RBUF", aml.MEMORY_MINIMUM, "LOW")
            + aml.dword_field("RBUF", aml.MEMORY_MAXIMUM, "HIGH")
            + aml.dword_field("RBUF", aml.MEMORY_SIZE, "SIZE")
            + aml.and_(aml.shift_left(window, aml.integer(16)), megabytes, "LOW")
            + aml.or_(aml.and_(window, megabytes), aml.integer(0xF_FFFF), "HIGH")
            + aml.add(aml.subtract(high, low), aml.ONE, "SIZE")
            + aml.return_(aml.variable("RBUF")),
        )
    )


def _interrupt_of(pin: int) -> bytes:
    """Return the entry of a _PRT for a pin of the bus's device. A device whose pin has no interrupt
    cannot be assigned. Devices here use MSIs, so which of the board's four a pin has is no
    matter."""
    every_function, no_link = aml.integer(0xFFFF), aml.integer(0)
    return aml.package(every_function, aml.integer(pin), no_link, aml.integer(_FIRST_PCI_GSI + pin))


def cmdqv_ssdt(smmu_identifier: int, config_space: int, window: int, interrupt: int) -> bytes:
    """Return an SSDT that describes the Tegra241 CMDQV of one SMMU. Its registers are `window`
    bytes in BAR 0 of the PCI function whose configuration space is at `config_space`; firmware has
    assigned the BAR before Linux evaluates this table. `interrupt` is a GSI.

    drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c, acpi_smmu_dsdt_probe_tegra241_cmdqv: _UID is the
    SMMU's IORT identifier.
    """
    resources = aml.dword_memory(window) + aml.edge_interrupt(interrupt) + aml.END
    registers = {"PCMD": (0x04, 16), "BAR0": (0x10, 32)}
    device = (
        aml.name_("_HID", aml.string("NVDA200C"))
        + aml.name_("_UID", aml.string(str(smmu_identifier)))
        + aml.name_("_CCA", aml.ONE)
        + aml.memory_fields("PCFG", config_space, 0x100, registers)
        # No driver enables the PCI function, and until it is enabled it decodes no registers.
        + aml.method("_INI", aml.store(aml.integer(_MEMORY_AND_MASTER), "PCMD"))
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
