"""A tree's Kconfig files tell why it does not take an option."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.artifacts.kconfig import why_not_taken

#: In the forms that Linux has.
FILES = {
    "init/Kconfig": """
config SYSCTL
\tbool

menuconfig EXPERT
\tbool "Configure standard kernel features (expert users)"
\thelp
\t  This depends on nobody.
\t  config HIDDEN_IN_HELP
\t  depends on NOTHING

if EXPERT
config FUTEX # a comment
\tbool "Enable futex support" if EXPERT
endif
""",
    "drivers/iommu/Kconfig.arm": """
config ARM_SMMU_V3
\ttristate "ARM Ltd. System MMU Version 3 (SMMUv3) Support"
\tdepends on ARM64 || \\
\t\tCOMPILE_TEST
\tselect IOMMU_API

if ARM_SMMU_V3
\tconfig ARM_SMMU_V3_IOMMUFD
\t\tbool
\t\tprompt 'Enable IOMMUFD features'
\t\tdepends on IOMMUFD
\t\tdepends on KVM # for its VMIDs
\t\thelp
\t\t  Text.

if DEEPER
endif
config ARM_SMMU_V3_SVA
\tbool "SVA"
endif

config OUTSIDE
\tbool "x"

config NO_DEBUG
\tbool "x"
\tdepends on !DEBUG
""",
    "fs/Kconfig": """
config BOTH
\tbool
\tdefault y

config BOTH
\tbool "Chosen"
\tdepends on NET
""",
    "arch/x86/Kconfig": 'config OF_X86\n\tbool "Of another architecture"\n',
    "arch/arm64/Kconfig": 'config OF_ARM64\n\tbool "Ours"\n',
    "Documentation/Kconfig": 'config OF_TEXT\n\tbool "In a text"\n',
    "drivers/Makefile": 'config OF_MAKE\n\tbool "In a Makefile"\n',
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


UNKNOWN = "is unknown in this tree"
A_MENU = "depends on a menu that is off, or another option excludes it"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("SYSCTL", "cannot be chosen in this tree: other options decide it"),
        ("PROC_SYSCTL", UNKNOWN),
        ("HIDDEN_IN_HELP", UNKNOWN),
        ("EXPERT", A_MENU),
        ("FUTEX", "depends on EXPERT"),
        ("ARM_SMMU_V3", "depends on ARM64 || COMPILE_TEST"),
        ("ARM_SMMU_V3_IOMMUFD", "depends on ARM_SMMU_V3 and on IOMMUFD and on KVM"),
        ("ARM_SMMU_V3_SVA", "depends on ARM_SMMU_V3"),
        ("NO_DEBUG", "depends on !DEBUG"),
        ("OUTSIDE", A_MENU),
        ("BOTH", "depends on NET"),
        ("OF_ARM64", A_MENU),
        ("OF_X86", UNKNOWN),
        ("OF_TEXT", UNKNOWN),
        ("OF_MAKE", UNKNOWN),
    ],
)
def test_why(tree: Path, name: str, why: str) -> None:
    asked = f"CONFIG_{name}"
    assert why_not_taken(tree, {asked, "CONFIG_OTHER"}) == {asked: why, "CONFIG_OTHER": UNKNOWN}


def test_what_is_on_is_no_reason(tree: Path) -> None:
    asked = "CONFIG_ARM_SMMU_V3_IOMMUFD"
    on = {"CONFIG_ARM_SMMU_V3", "CONFIG_IOMMUFD"}
    assert why_not_taken(tree, {asked}, on) == {asked: "depends on KVM"}
    asked = "CONFIG_NO_DEBUG"
    assert why_not_taken(tree, {asked}, {"CONFIG_DEBUG"}) == {asked: "depends on !DEBUG"}
