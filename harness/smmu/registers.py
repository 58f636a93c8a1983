"""The registers of an SMMUv3, by their offsets from its base, and the bits of them that are used.

Source: Arm IHI 0070, section 6.3, whose names are used here. All are on page 0 except EVENTQ_PROD
and EVENTQ_CONS, which are on page 1. BASE registers have 64 bits, the others 32.
"""

from __future__ import annotations

CR0 = 0x20
CR0_SMMUEN, CR0_EVENTQEN, CR0_CMDQEN = 1 << 0, 1 << 2, 1 << 3

#: The global bypass attribute: what the SMMU does with DMA while SMMUEN is 0.
GBPA = 0x44
GBPA_ABORT, GBPA_UPDATE = 1 << 20, 1 << 31

GERROR, GERRORN = 0x60, 0x64

STRTAB_BASE, STRTAB_BASE_CFG = 0x80, 0x88

CMDQ_BASE, CMDQ_PROD, CMDQ_CONS = 0x90, 0x98, 0x9C
#: In CMDQ_CONS: the mask of the read index and its wrap bit, and the position of the error code.
CMDQ_CONS_RD, CMDQ_CONS_ERR_SHIFT = (1 << 20) - 1, 24

EVENTQ_BASE, EVENTQ_PROD, EVENTQ_CONS = 0xA0, 0x1_00A8, 0x1_00AC
