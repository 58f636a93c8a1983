"""What is known of a kind of assignable device: one value, which its module describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.devices.source import FaultSource
from harness.guest.description import REGISTERS_READY
from harness.host.pci import PciDevice


@dataclass(frozen=True)
class PciId:
    """Devices of one vendor's model."""

    vendor: int
    device: int

    def matches(self, found: PciDevice) -> bool:
        return (found.vendor, found.device) == (self.vendor, self.device)

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.device:04x}"


@dataclass(frozen=True)
class PciClass:
    """Devices of any vendor that have a class code: base class and subclass, 16 bits."""

    code: int

    def matches(self, found: PciDevice) -> bool:
        return found.class_code == self.code

    def __str__(self) -> str:
        return f"class {self.code:04x}"


@dataclass(frozen=True)
class Emulation:
    """QEMU's model of the device, which the virtual host gets behind each of its SMMUs.

    `driver` and `properties` are as -device takes them. A model with a disk (`disk_bytes`) gets a
    blank one for each boot of the host, and its id as serial number. `saved`: QEMU's snapshots hold
    the model's state; of one that they leave out the PCI configuration is kept beside them.
    `slow_driver` is the host's driver if it takes long to probe the model: the boot does not wait
    for it.
    """

    driver: str
    properties: Mapping[str, str] = field(default_factory=dict)
    disk_bytes: int = 0
    saved: bool = True
    slow_driver: str = ""


@dataclass(frozen=True)
class DeviceKind:
    """A kind of assignable device.

    `role` is its name in inventories and in guests' specifications. `ready` is a shell condition,
    tried in the device's folder of the guest's sysfs: the guest has the device ready. `source` is
    how it is told to perform DMA, if it can be.
    """

    role: str
    identity: PciId | PciClass
    ready: str = REGISTERS_READY
    emulation: Emulation | None = None
    source: type[FaultSource] | None = None

    def matches(self, found: PciDevice) -> bool:
        """Return whether a host's device is of this kind."""
        return self.identity.matches(found)
