"""Intel 82576, a network card with a driver of its own in Linux (igb) and a model in QEMU."""

from __future__ import annotations

from harness.devices.kind import DeviceKind, Emulation, PciId

KIND = DeviceKind(
    role="igb",
    identity=PciId(0x8086, 0x10C9),
    # A guest's kernel that has no driver for it is done once the registers are there.
    ready="test -e resource0 && { test ! -e /sys/bus/pci/drivers/igb || test -e net/eth*; }",
    # Each takes 0.4 s of a boot that waits for it.
    emulation=Emulation("igb", slow_driver="igb"),
)
