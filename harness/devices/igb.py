"""Intel 82576, a network card with a driver of its own in Linux (igb) and a model in QEMU."""

from __future__ import annotations

from harness.devices.kind import DeviceKind, Emulation, PciId

KIND = DeviceKind(
    role="igb",
    identity=PciId(0x8086, 0x10C9),
    # If the guest's kernel has no igb driver, the device is ready when its registers are there.
    ready="test -e resource0 && { test ! -e /sys/bus/pci/drivers/igb || test -e net/eth*; }",
    # Each card adds 0.4 s to a boot that waits for its driver.
    emulation=Emulation("igb", slow_driver="igb"),
    rank=2,
)
