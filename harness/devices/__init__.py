"""Devices that a host can assign to a guest: one module a kind, found by itself.

A module of this folder that has a `KIND` is a kind of device. Nothing else names it: the inventory
takes its role, a host is checked for its PCI identity, a virtual host gets one behind each SMMU if
it can be emulated, and a guest is asked whether it has it ready.
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
    """Return all kinds by role, in the order of their modules' names. Raises HarnessError when two
    modules claim a role."""
    found: dict[str, DeviceKind] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        kind = getattr(importlib.import_module(module.name), "KIND", None)
        if not isinstance(kind, DeviceKind):
            continue
        if kind.role in found:
            raise HarnessError(f"{module.name}: another module has the role {kind.role}")
        found[kind.role] = kind
    return found


def kind(role: str) -> DeviceKind:
    """Return the kind with a role. Raises HarnessError for a role that no module has."""
    if role not in kinds():
        raise HarnessError(f"no kind of device {role}; there are {', '.join(kinds())}")
    return kinds()[role]


def fault_source(guest: Guest, role: str, smmu: int | None = None) -> FaultSource:
    """Return a guest's device of a role, ready to perform DMA. Raises HarnessError for a role whose
    devices cannot be told to."""
    return source_of(guest, guest.device(role, smmu))


def source_of(guest: Guest, device: AssignedDevice) -> FaultSource:
    """Return a device of a guest, ready to perform DMA. Raises as `fault_source`."""
    source = kind(device.role).source
    if source is None:
        raise HarnessError(f"{device.role} {device.id} cannot be told to perform DMA")
    return source(guest, device)
