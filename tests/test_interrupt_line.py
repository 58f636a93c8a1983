"""Interrupts are counted over all CPUs, in the row that /proc/interrupts has for a line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from harness.errors import ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.interrupt_line import Interrupts, interrupts
from harness.host.ability import DISK

HOST = """\
           CPU0       CPU1
 55:          3          4  GICv3  35 Level     vfio-intx(0000:09:00.0)
 57:         16        100  GICv3  37 Level     vfio-intx(0000:0b:00.0)
IPI0:        20         30  Rescheduling interrupts
"""
GUEST = """\
           CPU0
 10:        475  GICv3      27 Level     arch_timer
 50:       1930  GICv3      36 Level     nvme0q0, nvme0q1
Err:          0
"""
DRIVE = AssignedDevice("dev0.1", DISK, "nvme", "0000:0b:00.0", smmu=0, port=1)


def guest(host: str = HOST, table: str = GUEST) -> Guest:
    """Return what stands for a guest: the texts of its host's and its own /proc/interrupts."""

    def run(command: str) -> SimpleNamespace:
        return SimpleNamespace(text="50\n" if command.endswith("/irq") else table)

    return cast(Guest, SimpleNamespace(name="guest0", host_run=lambda _: host, run=run))


def test_they_are_counted_on_both_sides() -> None:
    assert interrupts(guest(), DRIVE) == Interrupts(116, 1930)
    assert interrupts(guest(), DRIVE) - Interrupts(16, 1900) == Interrupts(100, 30)


@pytest.mark.parametrize("running", [guest(host=GUEST), guest(table=HOST)])
def test_a_device_without_a_line_is_told(running: Guest) -> None:
    with pytest.raises(ProductError, match="the nvme of guest guest0 has no interrupt line"):
        interrupts(running, DRIVE)
