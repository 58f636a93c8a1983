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


def fault_source(guest: Guest, role: str, smmu: int | None = None) -> FaultSource:
    """Return a guest's device of a role, ready to perform DMA, as a fault source.

    Raises HarnessError if the guest has no such device, or if devices of this kind are no fault
    sources; ProductError as FaultSource.
    """
    return source_of(guest, guest.device(role, smmu))


def source_of(guest: Guest, device: AssignedDevice) -> FaultSource:
    """Return a guest's device as a fault source, ready to perform DMA. Raises like `fault_source`,
    for a device that the guest has."""
    source = kind(device.role).source
    if source is None:
        sources = ", ".join(one.role for one in kinds().values() if one.source)
        raise HarnessError(
            f"{device.role} {device.id} is not a fault source: the harness cannot make it perform "
            "a DMA",
            fix=f"choose {sources}, or give its kind a `source` in harness/devices",
        )
    return source(guest, device)
