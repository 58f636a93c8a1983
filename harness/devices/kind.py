"""Describe a kind of assignable device: how one is recognised, when a guest has it ready, how QEMU
emulates it, and how it is told to perform DMA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.devices.source import FaultSource
from harness.guest.description import REGISTERS_READY
from harness.host.ability import Ability
from harness.host.pci import PciDevice


@dataclass(frozen=True)
class PciId:
    """The PCI identity of devices of one vendor's model."""

    vendor: int
    device: int

    def matches(self, found: PciDevice) -> bool:
        """Return whether a host's device has this identity."""
        return (found.vendor, found.device) == (self.vendor, self.device)

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.device:04x}"


@dataclass(frozen=True)
class PciClass:
    """The PCI identity of devices of any vendor with one class code: base class and subclass, 16
    bits."""

    code: int

    def matches(self, found: PciDevice) -> bool:
        """Return whether a host's device has this identity."""
        return found.class_code == self.code

    def __str__(self) -> str:
        return f"class {self.code:04x}"


@dataclass(frozen=True)
class Emulation:
    """QEMU's model of a device. The virtual host gets one behind each of its SMMUs.

    `driver` and `properties` are as -device takes them. If `disk_bytes` is not 0, the model gets a
    blank disk of that size at each boot of the host, and its id as serial number. `saved` says
    whether QEMU's snapshots contain the model's state; if not, the harness stores the PCI
    configuration beside the snapshot. `slow_driver` is the host's driver if it takes long to probe
    the model: the boot does not wait for it.
    """

    driver: str
    properties: Mapping[str, str] = field(default_factory=dict)
    disk_bytes: int = 0
    saved: bool = True
    slow_driver: str = ""


@dataclass(frozen=True)
class DeviceKind:
    """A kind of assignable device.

    `role` is its name in inventories. `ready` is a shell condition, tried in the device's folder of
    the guest's sysfs: true when the guest has the device ready. `emulation` is QEMU's model of it,
    if there is one. `sources` are the ways to make it perform DMA, the best first. `also` is what
    it can do besides. Of several devices that a test could have, it gets one of the lowest `rank`.
    """

    role: str
    identity: PciId | PciClass
    ready: str = REGISTERS_READY
    emulation: Emulation | None = None
    sources: tuple[type[FaultSource], ...] = ()
    also: frozenset[Ability] = frozenset()
    rank: int = 0

    @property
    def can(self) -> frozenset[Ability]:
        """Return all that a device of this kind can do for a test."""
        return self.also.union(*(source.can for source in self.sources))

    def matches(self, found: PciDevice) -> bool:
        """Return whether a host's device is of this kind."""
        return self.identity.matches(found)
