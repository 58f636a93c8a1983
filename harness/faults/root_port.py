"""A guest's PCIe root port: QEMU's own device behind the SMMU. Its interrupts can be misdirected.

Its MSI-X table is in BAR 0. Every write to Slot Control ends in a Command Completed event (PCIe
base specification, 7.5.3.10), for which it sends one message: a 4-byte DMA write of QEMU's own.
"""

from __future__ import annotations

import re
import shlex

from harness.errors import ProductError
from harness.guest.description import BUS_STEP, FIRST_BUS
from harness.guest.guest import Guest

_CAP_EXPRESS = 0x10
_SLOT_CONTROL, _SLOT_STATUS = 0x18, 0x1A
_COMMAND_COMPLETED = 1 << 4  # in Slot Status; write 1 to clear
_CC_ENABLE, _HOT_PLUG_ENABLE = 1 << 4, 1 << 5


class RootPort:
    """The `port`-th root port of an SMMU. Spoils the guest: its hot-plug is deaf afterwards."""

    def __init__(self, guest: Guest, smmu: int, port: int) -> None:
        self.guest = guest
        bus = FIRST_BUS + BUS_STEP * smmu
        self.sid = bus << 8 | port << 3
        self.sysfs = f"/sys/bus/pci/devices/0000:{bus:02x}:{port:02x}.0"
        self._express = self._capability(_CAP_EXPRESS)

    def _capability(self, wanted: int) -> int:
        """Offset of a capability in configuration space."""
        dump = self.guest.run(f"od -An -v -tx1 -N256 {self.sysfs}/config").text
        config = bytes.fromhex(re.sub(r"\s", "", dump))
        offset = config[0x34]
        while offset:
            if config[offset] == wanted:
                return offset
            offset = config[offset + 1]
        raise ProductError(f"root port {self.sysfs} has no capability {wanted:#x}")

    def _config_write(self, offset: int, value: int) -> str:
        octal = "".join(f"\\{byte:o}" for byte in value.to_bytes(2, "little"))
        return f"printf '{octal}' | dd of={self.sysfs}/config bs=1 seek={offset} conv=notrunc 2>&-"

    def unbind_hotplug(self) -> None:
        """Take the guest's hot-plug driver off the port: whatever is asked of it is not heard."""
        self.guest.run(
            f"cd {self.sysfs}; for one in *:pcie*; do case $(readlink $one/driver) in "
            "*/pciehp) echo $one >$one/driver/unbind;; esac; done"
        )

    def misdirect_interrupts(self, address: int) -> None:
        """Have the port's messages go to `address`."""
        table = [f"w32:0={address & 0xFFFF_FFFF:#x}", f"w32:4={address >> 32:#x}"]
        self.guest.run(shlex.join(["hil", "mmio", f"{self.sysfs}/resource0", *table]))

    def interrupt_command(self, *, times: int) -> str:
        """The guest's command that makes the port send that many messages."""
        status, control = self._express + _SLOT_STATUS, self._express + _SLOT_CONTROL
        clear = self._config_write(status, _COMMAND_COMPLETED)
        provoke = self._config_write(control, _CC_ENABLE | _HOT_PLUG_ENABLE)
        return f"for i in $(seq {times}); do {clear}; {provoke}; done"
