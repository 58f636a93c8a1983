"""A host is found to have a CMDQV if its kernel drives one, and to have none if it has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.host.host import HostFiles, probes
from tests.local_host import LocalHost

OTHER = "arm-smmu-v3-evtq"


@pytest.mark.parametrize(
    ("node", "interrupt", "found"),
    [
        ("NVDA200C:00", "tegra241-cmdqv", {"cmdqv"}),
        # CONFIG_TEGRA241_CMDQV is not set, or the driver has refused the hardware.
        ("NVDA200C:00", OTHER, set()),
        ("ARMH0011:00", OTHER, {"no-cmdqv"}),
    ],
)
def test_a_cmdqv_is_there_if_the_kernel_drives_it(
    tmp_path: Path, node: str, interrupt: str, found: set[str]
) -> None:
    devices, interrupts = tmp_path / "devices", tmp_path / "interrupts"
    (devices / node).mkdir(parents=True)
    interrupts.write_text(f"           CPU0\n 77:          0   GICv3 116 Edge      {interrupt}\n")

    def holds(condition: str) -> bool:
        for real, here in (("/sys/bus/acpi/devices", devices), ("/proc/interrupts", interrupts)):
            condition = condition.replace(real, str(here))
        return LocalHost().run(condition, check=False).status == 0

    conditions = probes(HostFiles("qemu", "firmware", "kernel", "initrd"))
    assert {one for one in ("cmdqv", "no-cmdqv") if holds(conditions[one])} == found
