"""A root port's place and power indicator are read from its configuration space."""

from __future__ import annotations

import pytest

from harness.errors import ProductError
from harness.guest.root_port import PowerIndicator, RootPort, express_offset, power_indicator


def config(*capabilities: tuple[int, int], control: int = 0) -> bytes:
    """Return a configuration space of 256 bytes that lists these capabilities, given as (offset,
    id), in this order, with `control` as the slot control register."""
    space = bytearray(256)
    link = 0x34
    for offset, identity in capabilities:
        space[link] = offset
        space[offset], link = identity, offset + 1
        if identity == 0x10:
            space[offset + 0x18 : offset + 0x1A] = control.to_bytes(2, "little")
    return bytes(space)


@pytest.mark.parametrize("shown", PowerIndicator)
def test_the_power_indicator_is_in_slot_control(shown: PowerIndicator) -> None:
    control = 0x103F | shown << 8
    space = config((0x48, 0x11), (0x54, 0x10), (0x40, 0x0D), control=control)
    assert express_offset(space) == 0x54
    assert power_indicator(space) is shown


def test_a_port_without_a_slot_is_told() -> None:
    with pytest.raises(ProductError, match="no PCI Express capability"):
        express_offset(config((0x48, 0x11)))


def test_where_a_port_is() -> None:
    port = RootPort(smmu=1, port=2)
    assert (port.sid, port.sysfs) == (0x3010, "/sys/bus/pci/devices/0000:30:02.0")
