"""Keep the PCI configuration of devices that QEMU's snapshots leave out (Emulation.saved).

A restored machine has them as after reset, with their configuration gone, while the kernel in it
goes on believing in the addresses that it assigned. So it is kept beside the snapshot.

Their own registers need no keeping: no DMA is under way when a snapshot is saved.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.virtual.qtest import Qtest

#: hw/arm/virt.c, VIRT_HIGH_PCIE_ECAM
ECAM = 0x40_1000_0000
_COMMAND = 0x04
#: Header and capabilities; these conventional PCI devices have no more.
_CONFIG_BYTES = 0x100

#: bdf → its configuration space in words of four bytes
Configurations = dict[str, list[int]]


def config_address(bdf: str) -> int:
    """Where ECAM has a function's configuration space."""
    _, bus, slot, function = bdf.replace(".", ":").split(":")
    return ECAM + (int(bus, 16) << 20 | int(slot, 16) << 15 | int(function, 16) << 12)


def read(qtest: Qtest, bdfs: Sequence[str]) -> Configurations:
    """The configurations as they are."""
    return {
        bdf: [qtest.readl(config_address(bdf) + at) for at in range(0, _CONFIG_BYTES, 4)]
        for bdf in bdfs
    }


def write(qtest: Qtest, configurations: Configurations) -> None:
    """Put configurations back; Command last, so that nothing decodes before its BAR is set."""
    for bdf, words in configurations.items():
        base = config_address(bdf)
        for index, word in enumerate(words):
            if index != _COMMAND // 4:
                qtest.writel(base + 4 * index, word)
        qtest.writel(base + _COMMAND, words[_COMMAND // 4])
