"""Read the PCIe root ports of a guest. Each assigned device has one, emulated by QEMU, behind the
guest's SMMU.

Registers: PCIe base specification, 7.5.1 and 7.5.3.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import ProductError
from harness.guest.description import BUS_STEP, FIRST_BUS
from harness.guest.guest import Guest

SLOT_CONTROL, SLOT_STATUS = 0x18, 0x1A

_CAPABILITIES, _CAP_EXPRESS = 0x34, 0x10
_CONFIG_BYTES = 256
_POWER_INDICATOR_SHIFT = 8


class PowerIndicator(enum.IntEnum):
    """The state of a slot's power indicator."""

    ON = 1
    BLINKING = 2
    OFF = 3


@dataclass(frozen=True)
class RootPort:
    """Root port number `port` of SMMU number `smmu`, both from 0."""

    smmu: int
    port: int

    @property
    def bus(self) -> int:
        """Return the bus that the port is on, in the guest."""
        return FIRST_BUS + BUS_STEP * self.smmu

    @property
    def secondary_bus(self) -> int:
        """Return the bus behind the port, whose number the firmware chose."""
        return self.bus + 1 + self.port

    @property
    def sid(self) -> int:
        """Return the port's own StreamID in the guest."""
        return self.bus << 8 | self.port << 3

    @property
    def sysfs(self) -> str:
        """Return the port's folder in the guest's sysfs."""
        return f"/sys/bus/pci/devices/0000:{self.bus:02x}:{self.port:02x}.0"


def read_config(guest: Guest, ports: Sequence[RootPort]) -> list[bytes]:
    """Return the first 256 bytes of each port's configuration space."""
    dump = "od -An -v -tx1 -N256"
    text = guest.run("; ".join(f"{dump} {port.sysfs}/config" for port in ports)).text
    data = bytes.fromhex(text)
    return [data[at : at + _CONFIG_BYTES] for at in range(0, len(data), _CONFIG_BYTES)]


def express_offset(config: bytes) -> int:
    """Return the offset of the PCI Express capability in a configuration space. Raises ProductError
    if there is none."""
    offset = config[_CAPABILITIES]
    while offset:
        if config[offset] == _CAP_EXPRESS:
            return offset
        offset = config[offset + 1]
    raise ProductError("a root port has no PCI Express capability")


def power_indicator(config: bytes) -> PowerIndicator:
    """Return the state of a slot's power indicator, which the guest sets. It blinks while the guest
    works on the slot."""
    at = express_offset(config) + SLOT_CONTROL
    control = int.from_bytes(config[at : at + 2], "little")
    return PowerIndicator(control >> _POWER_INDICATOR_SHIFT & 3)
