"""A guest's PCIe root ports: each assigned device has one. QEMU's own devices, behind its SMMU.

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
    """What a slot shows of itself."""

    ON = 1
    BLINKING = 2
    OFF = 3


@dataclass(frozen=True)
class RootPort:
    """The `port`-th root port of an SMMU."""

    smmu: int
    port: int

    @property
    def bus(self) -> int:
        return FIRST_BUS + BUS_STEP * self.smmu

    @property
    def sid(self) -> int:
        return self.bus << 8 | self.port << 3

    @property
    def sysfs(self) -> str:
        return f"/sys/bus/pci/devices/0000:{self.bus:02x}:{self.port:02x}.0"


def read_config(guest: Guest, ports: Sequence[RootPort]) -> list[bytes]:
    """The first 256 bytes of each one's configuration space."""
    dump = "od -An -v -tx1 -N256"
    text = guest.run("; ".join(f"{dump} {port.sysfs}/config" for port in ports)).text
    data = bytes.fromhex(text)
    return [data[at : at + _CONFIG_BYTES] for at in range(0, len(data), _CONFIG_BYTES)]


def express_offset(config: bytes) -> int:
    """Where the PCI Express capability is in a configuration space. Raises ProductError."""
    offset = config[_CAPABILITIES]
    while offset:
        if config[offset] == _CAP_EXPRESS:
            return offset
        offset = config[offset + 1]
    raise ProductError("a root port has no PCI Express capability")


def power_indicator(config: bytes) -> PowerIndicator:
    """What the guest has a slot show. It blinks while the guest is busy with the slot."""
    at = express_offset(config) + SLOT_CONTROL
    control = int.from_bytes(config[at : at + 2], "little")
    return PowerIndicator(control >> _POWER_INDICATOR_SHIFT & 3)
