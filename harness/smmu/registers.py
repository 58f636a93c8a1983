"""The registers of an SMMUv3, by their offsets from its base, and the bits of them that are used.

Source: Arm IHI 0070, section 6.3, whose names are used here. All are on page 0 except EVENTQ_PROD
and EVENTQ_CONS, which are on page 1. BASE registers have 64 bits, the others 32.
"""

from __future__ import annotations

IDR0, IDR1, IDR3, IDR5 = 0x00, 0x04, 0x0C, 0x14

#: Bits of CR0ACK follow those of CR0 once the SMMU has taken the change.
CR0, CR0ACK = 0x20, 0x24
CR0_SMMUEN, CR0_EVENTQEN, CR0_CMDQEN = 1 << 0, 1 << 2, 1 << 3

#: The global bypass attribute: what the SMMU does with DMA while SMMUEN is 0.
GBPA = 0x44
GBPA_ABORT, GBPA_UPDATE = 1 << 20, 1 << 31

GERROR, GERRORN = 0x60, 0x64
#: The errors in GERROR, by bit: each is active while its bit differs from GERRORN's.
GERRORS = {
    0: ("CMDQ_ERR", "a command failed: the SMMU takes no more until it is acknowledged"),
    2: ("EVENTQ_ABT_ERR", "an event could not be written to the event queue: events are lost"),
    3: ("PRIQ_ABT_ERR", "a page request could not be written to the PRI queue"),
    4: ("MSI_CMDQ_ABT_ERR", "the interrupt (MSI) of a CMD_SYNC could not be written"),
    5: ("MSI_EVENTQ_ABT_ERR", "the event queue's interrupt (MSI) could not be written"),
    6: ("MSI_PRIQ_ABT_ERR", "the PRI queue's interrupt (MSI) could not be written"),
    7: ("MSI_GERROR_ABT_ERR", "the interrupt (MSI) of GERROR itself could not be written"),
    8: ("SFM_ERR", "the SMMU is in Service Failure Mode: it translates nothing any more"),
    9: ("CMDQP_ERR", "an enhanced command queue's control page has an error"),
}

STRTAB_BASE, STRTAB_BASE_CFG = 0x80, 0x88

CMDQ_BASE, CMDQ_PROD, CMDQ_CONS = 0x90, 0x98, 0x9C
#: In CMDQ_CONS: the mask of the read index and its wrap bit, and the position of the error code.
CMDQ_CONS_RD, CMDQ_CONS_ERR_SHIFT = (1 << 20) - 1, 24

EVENTQ_BASE, EVENTQ_PROD, EVENTQ_CONS = 0xA0, 0x1_00A8, 0x1_00AC
