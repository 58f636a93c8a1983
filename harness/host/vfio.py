"""Choose the module whose driver makes a PCI function a vfio device: vfio-pci, or a variant of it.

A variant driver is for one family of devices, as mlx5_vfio_pci is for ConnectX VFs. The kernel
says which with aliases of its module. They begin with "vfio_pci:" where those of other drivers
begin with "pci:", so that no such module is loaded by itself (PCI_DRIVER_OVERRIDE_DEVICE_VFIO in
include/linux/pci.h; scripts/mod/file2alias.c). libvirt chooses by the same rule.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: The module of vfio-pci, which drives any device.
ANY_DEVICE = "vfio_pci"


@dataclass(frozen=True)
class Alias:
    """A pattern of fnmatch(3) for modaliases, and the module that is offered for them."""

    pattern: str
    module: str


def module_name(name: str) -> str:
    """Return the name under which the kernel has a module: it has underscores where its file and
    its driver may have dashes."""
    return name.replace("-", "_")


def aliases(lines: Iterable[str]) -> list[Alias]:
    """Return the aliases in lines of modules.alias ("alias PATTERN MODULE"), and in entries of
    modules.builtin.modinfo ("MODULE.alias=PATTERN"). Comments and other entries have none."""
    found = []
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[0] == "alias":
            found.append(Alias(words[1], module_name(words[2])))
        elif len(words) == 1 and ".alias=" in line:
            module, _, pattern = words[0].partition(".alias=")
            found.append(Alias(pattern, module_name(module)))
    return found


def offered(modalias: str, among: Sequence[Alias]) -> str | None:
    """Return the module that the kernel offers as vfio driver of a device with this modalias
    ("pci:v0000…"); None if no alias matches. Of several aliases that match, the one with the
    fewest wildcards counts, and of equal ones the first."""
    wanted = modalias.replace("pci:", "vfio_pci:", 1)
    matching = [one for one in among if fnmatch.fnmatchcase(wanted, one.pattern)]
    best = min(matching, key=lambda one: one.pattern.count("*"), default=None)
    return best.module if best else None


def registered(module: str, paths: Sequence[str]) -> str | None:
    """Return the name of a module's PCI driver; None if it has registered none.

    `paths` are those of sysfs: /sys/module/MODULE/drivers/pci:DRIVER, and
    /sys/bus/pci/drivers/DRIVER. A kernel without loadable modules has only the latter; then the
    driver is the one whose name is the module's but for dashes.
    """
    listed = f"/sys/module/{module}/drivers/pci:"
    for path in paths:
        if path.startswith(listed):
            return path.removeprefix(listed)
    drivers = (path.rpartition("/")[2] for path in paths if path.startswith("/sys/bus/"))
    return next((one for one in drivers if module_name(one) == module), None)
