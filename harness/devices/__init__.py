"""The kinds of devices that a host can assign to a guest: one module for each, found by itself.

A module of this folder that has a `KIND` is a kind of device. No other place names it. Its role can
be used in inventories, a host's device is checked for its PCI identity, a virtual host gets one
behind each SMMU if QEMU can emulate it, and its `ready` tells when a guest has it ready.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from harness.devices.kind import DeviceKind
from harness.devices.source import FaultSource
from harness.errors import HarnessError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.host.ability import Ability


@functools.cache
def kinds() -> Mapping[str, DeviceKind]:
    """Return all kinds by role, in the order of their modules' names. Raises HarnessError if two
    modules have the same role."""
    found: dict[str, DeviceKind] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        kind = getattr(importlib.import_module(module.name), "KIND", None)
        if not isinstance(kind, DeviceKind):
            continue
        if kind.role in found:
            raise HarnessError(
                f"{module.name}: another module has the role {kind.role} too",
                fix="give one of the two kinds another role",
            )
        found[kind.role] = kind
    return found


def kind(role: str) -> DeviceKind:
    """Return the kind with a role. Raises HarnessError for a role that no module has."""
    if role not in kinds():
        raise HarnessError(
            f"no kind of device has the role {role}", fix=f"choose {', '.join(kinds())}"
        )
    return kinds()[role]


def ways() -> list[tuple[str, type[FaultSource]]]:
    """Return every way of every kind to perform DMA, with the kind's role, for tests of sources."""
    return [(one.role, source) for one in kinds().values() for source in one.sources]


def source(guest: Guest, *abilities: Ability, smmu: int | None = None) -> FaultSource:
    """Return a fault source with these abilities, of a device that the guest booted with; only of
    SMMU number `smmu`, if given. A device that was chosen for these abilities comes first.

    Raises HarnessError if the guest was not described with one; ProductError as FaultSource.
    """
    here = [device for device in guest.devices if device.cold and smmu in (None, device.smmu)]
    for device in sorted(here, key=lambda device: not device.need.can >= set(abilities)):
        if _way(device, abilities):
            return source_of(guest, device, *abilities)
    raise HarnessError(
        f"no device of guest {guest.name} can {' and '.join(abilities)}",
        fix="name the abilities in the guest's description",
    )


def source_of(guest: Guest, device: AssignedDevice, *abilities: Ability) -> FaultSource:
    """Return a guest's device as a fault source with these abilities. Raises HarnessError if the
    device does not have them; ProductError as FaultSource."""
    way = _way(device, abilities)
    if way is None:
        ways = ", ".join(f"{one.way}: {' '.join(sorted(one.can))}" for one in _sources(device))
        raise HarnessError(
            f"{device.role} {device.id} cannot {' and '.join(abilities) or 'perform DMA'}",
            fix=f"ask for what it can ({ways or 'no DMA'}), or for another device",
        )
    return way(guest, device)


def _sources(device: AssignedDevice) -> tuple[type[FaultSource], ...]:
    return kind(device.role).sources


def _way(device: AssignedDevice, abilities: tuple[Ability, ...]) -> type[FaultSource] | None:
    """Return the first way of a device that has all these abilities."""
    return next((one for one in _sources(device) if one.can.issuperset(abilities)), None)
