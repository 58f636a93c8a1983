"""The registers of an SMMU and of a CMDQV are where their documents have them."""

from __future__ import annotations

from harness.smmu import cmdqv, registers
from harness.smmu.cmdqv import Config, Page0, Page1, QueueError, VintfRegister


def test_registers_of_an_smmu_are_where_section_6_3_has_them() -> None:
    assert (registers.IDR0, registers.IDR1, registers.IDR3, registers.IDR5) == (0, 4, 12, 20)
    assert (registers.CR0, registers.CR0ACK, registers.GBPA) == (0x20, 0x24, 0x44)
    assert (registers.GERROR, registers.GERRORN) == (0x60, 0x64)
    assert (registers.STRTAB_BASE, registers.STRTAB_BASE_CFG) == (0x80, 0x88)
    assert (registers.CMDQ_BASE, registers.CMDQ_PROD, registers.CMDQ_CONS) == (0x90, 0x98, 0x9C)
    assert registers.EVENTQ_BASE == 0xA0
    assert (registers.EVENTQ_PROD, registers.EVENTQ_CONS) == (0x100A8, 0x100AC)


def test_bits_of_an_smmus_registers_are_where_section_6_3_has_them() -> None:
    assert (registers.CR0_SMMUEN, registers.CR0_EVENTQEN, registers.CR0_CMDQEN) == (1, 4, 8)
    assert (registers.GBPA_ABORT, registers.GBPA_UPDATE) == (0x10_0000, 0x8000_0000)
    assert registers.CMDQ_CONS_RD == 0x000F_FFFF
    assert 0x7F << registers.CMDQ_CONS_ERR_SHIFT == 0x7F00_0000
    names = {bit: name for bit, (name, _) in registers.GERRORS.items()}
    assert names == {
        0: "CMDQ_ERR",
        2: "EVENTQ_ABT_ERR",
        3: "PRIQ_ABT_ERR",
        4: "MSI_CMDQ_ABT_ERR",
        5: "MSI_EVENTQ_ABT_ERR",
        6: "MSI_PRIQ_ABT_ERR",
        7: "MSI_GERROR_ABT_ERR",
        8: "SFM_ERR",
        9: "CMDQP_ERR",
    }


def test_registers_of_a_cmdqv_are_where_linux_has_them() -> None:
    # tegra241-cmdqv.c: TEGRA241_CMDQV_*, TEGRA241_VINTF, TEGRA241_VCMDQ_PAGE0 and the like.
    assert (cmdqv.CONFIG_PAGE, cmdqv.VCMDQ_PAGE0, cmdqv.VCMDQ_PAGE1) == (0, 0x10000, 0x20000)
    assert (cmdqv.VINTF_PAGES, cmdqv.VINTF_STRIDE, cmdqv.VCMDQ_STRIDE) == (0x30000, 0x100, 0x80)
    assert {one.name: one.value for one in Config} == {
        "CONFIG": 0x0,
        "PARAM": 0x4,
        "STATUS": 0x8,
        "VINTF_ERR_MAP": 0x14,
        "VINTF_INT_MASK": 0x1C,
        "CMDQ_ERR_MAP": 0x24,
        "CMDQ_ALLOC": 0x200,
        "VINTF": 0x1000,
    }
    assert {one.name: one.value for one in VintfRegister} == {
        "CONFIG": 0x0,
        "STATUS": 0x4,
        "SID_MATCH": 0x40,
        "SID_REPLACE": 0x80,
        "LVCMDQ_ERR_MAP": 0xC0,
    }
    assert {one.name: one.value for one in Page0} == {
        "CONS": 0x0,
        "PROD": 0x4,
        "CONFIG": 0x8,
        "STATUS": 0xC,
        "GERROR": 0x10,
        "GERRORN": 0x14,
    }
    assert {one.name: one.value for one in Page1} == {"BASE": 0, "CONS_INDX_BASE": 8}


def test_bits_of_a_cmdqvs_registers_are_where_linux_has_them() -> None:
    assert (cmdqv.ENABLE, cmdqv.ALLOCATED, cmdqv.INIT_ERR) == (1, 1, 4)
    assert {one.name: one.value for one in QueueError} == {
        "NONE": 0,
        "ILLEGAL": 1,
        "ABORT": 2,
        "ATC_INV_SYNC": 3,
    }


def test_the_ring_of_a_vcmdq_is_made_once() -> None:
    ring = cmdqv.vcmdq_ring(0x1_0000_4567_8007)
    assert (ring.address, ring.entries, ring.entry_bytes) == (0x4567_8000, 128, 16)
    assert cmdqv.vcmdq_ring(0xFFFF_FFFF_FFFF_FFE0).address == 0xFFFF_FFFF_FFE0
    assert cmdqv.vcmdq_ring(0x1_0000_4567_8007) is ring
