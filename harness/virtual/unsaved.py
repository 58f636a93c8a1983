"""Save and restore the PCI configuration of devices that QEMU does not save (Emulation.saved).

In a restored machine these devices are as after a reset, without the addresses that the machine's
kernel assigned and goes on using. So their configuration is kept beside the snapshot.

Their other registers need not be kept: no DMA is under way when a snapshot is saved.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.virtual.qtest import Qtest

#: The address of ECAM: hw/arm/virt.c, VIRT_HIGH_PCIE_ECAM.
ECAM = 0x40_1000_0000
_COMMAND = 0x04
#: The size of header and capabilities; these conventional PCI devices have nothing beyond.
_CONFIG_BYTES = 0x100

#: PCI addresses, as QEMU numbers the buses, and the configuration space of each, in words of four
#: bytes.
Configurations = dict[str, list[int]]


def config_address(bdf: str) -> int:
    """Return the physical address of a function's configuration space (ECAM); `bdf` is as QEMU
    numbers the buses."""
    _, bus, slot, function = bdf.replace(".", ":").split(":")
    return ECAM + (int(bus, 16) << 20 | int(slot, 16) << 15 | int(function, 16) << 12)


def read(qtest: Qtest, bdfs: Sequence[str]) -> Configurations:
    """Read the configurations of these functions."""
    return {
        bdf: [qtest.readl(config_address(bdf) + at) for at in range(0, _CONFIG_BYTES, 4)]
        for bdf in bdfs
    }


def write(qtest: Qtest, configurations: Configurations) -> None:
    """Write configurations back. Command comes last, so that no BAR is decoded before it is
    set."""
    for bdf, words in configurations.items():
        base = config_address(bdf)
        for index, word in enumerate(words):
            if index != _COMMAND // 4:
                qtest.writel(base + 4 * index, word)
        qtest.writel(base + _COMMAND, words[_COMMAND // 4])
