"""Make a guest's PCIe root port faulty: without its hot-plug driver, or with interrupts that go to
a wrong address.

The port's MSI-X table is in BAR 0. Every write to Slot Control causes a Command Completed event
(PCIe base specification, 7.5.3.10). For each event the port sends one message: a DMA write of 4
bytes, which QEMU itself performs.
"""

from __future__ import annotations

from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, write32
from harness.guest.root_port import (
    SLOT_CONTROL,
    SLOT_STATUS,
    RootPort,
    express_offset,
    read_config,
)

_COMMAND_COMPLETED = 1 << 4  # in Slot Status; write 1 to clear
_CC_ENABLE, _HOT_PLUG_ENABLE = 1 << 4, 1 << 5


class FaultyRootPort:
    """A root port that a test makes faulty. The guest's hot-plug may not work afterwards, so no
    other test can use the guest."""

    def __init__(self, guest: Guest, port: RootPort) -> None:
        self.guest, self.port = guest, port
        (config,) = read_config(guest, [port])
        self._express = express_offset(config)

    def _config_write(self, offset: int, value: int) -> str:
        octal = "".join(f"\\{byte:o}" for byte in value.to_bytes(2, "little"))
        config = f"{self.port.sysfs}/config"
        return f"printf '{octal}' | dd of={config} bs=1 seek={offset} conv=notrunc 2>&-"

    def unbind_hotplug(self) -> None:
        """Unbind the guest's hot-plug driver from the port: the guest ignores all requests to plug
        or unplug there."""
        self.guest.run(
            f"cd {self.port.sysfs}; for one in *:pcie*; do case $(readlink $one/driver) in "
            "*/pciehp) echo $one >$one/driver/unbind;; esac; done"
        )

    def misdirect_interrupts(self, address: int) -> None:
        """Make the port send its messages to `address`."""
        table = Mmio(self.guest, f"{self.port.sysfs}/resource0")
        table.run(write32(0, address & 0xFFFF_FFFF), write32(4, address >> 32))

    def interrupt_command(self, *, times: int) -> str:
        """Return the guest's shell command that makes the port send `times` messages."""
        status, control = self._express + SLOT_STATUS, self._express + SLOT_CONTROL
        clear = self._config_write(status, _COMMAND_COMPLETED)
        provoke = self._config_write(control, _CC_ENABLE | _HOT_PLUG_ENABLE)
        return f"for i in $(seq {times}); do {clear}; {provoke}; done"
