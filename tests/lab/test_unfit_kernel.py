"""When a guest's kernel does not reach its prompt, the error says why, long before the deadline."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from harness.errors import HilError
from harness.guest.console import GuestCrashedError
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import BOOT_SECONDS, GuestUnfitError
from harness.host.ability import ANY

ONE_DEVICE = GuestSpec(smmus=(SmmuSpec(devices=(ANY,)),))

pytestmark = [pytest.mark.lab, pytest.mark.guest(ONE_DEVICE)]


def failure_without(initcall: str, fleet: Fleet, kind: type[HilError]) -> str:
    guest = replace(ONE_DEVICE, append=f"initcall_blacklist={initcall}")
    started = time.monotonic()
    with pytest.raises(kind) as failure:
        with fleet.guests([guest], Freshness.COLD):
            pass
    assert time.monotonic() - started < BOOT_SECONDS / 2
    return str(failure.value)


def test_a_kernel_without_the_virtio_console(fleet: Fleet) -> None:
    said = failure_without("virtio_console_init", fleet, GuestUnfitError)
    assert "no /dev/hvc0 (CONFIG_VIRTIO_CONSOLE)" in said


def test_a_kernel_that_dies_before_there_is_a_console(fleet: Fleet) -> None:
    """The kernel dies because it registers PCI slots without a PCI bus: kset_register() of NULL."""
    _, uart = failure_without("pci_driver_init", fleet, GuestCrashedError).split("on its UART:")
    assert "kset_register" in uart
    assert "---[ end Kernel panic" in uart
