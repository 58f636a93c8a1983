"""Power of a virtual host: its QEMU is started and ended."""

from __future__ import annotations

from dataclasses import dataclass

from harness.host.power import PowerState, PowerUnsupportedError
from harness.qmp import QmpRefusedError
from harness.virtual.machine import VirtualMachine


@dataclass(frozen=True)
class VirtualControl:
    """The power of a virtual host. It is a HostPower. A host that it turns on stays up, as by
    `hil lab up`, and has the port for SSH that it had before."""

    vm: VirtualMachine

    def state(self) -> PowerState:
        return PowerState.ON if self.vm.running() else PowerState.OFF

    def on(self) -> None:
        self.vm.up(stay=True)

    def off(self) -> None:
        self.vm.down()

    def cycle(self) -> None:
        self.vm.down()
        self.vm.up(stay=True)

    def nmi(self) -> None:
        """Have QEMU inject an NMI, which its machine for AArch64 knows only in some versions."""
        with self.vm.monitor() as monitor:
            try:
                monitor.execute("inject-nmi")
            except QmpRefusedError as refused:
                raise PowerUnsupportedError(
                    f"the QEMU of virtual host {self.vm.name} has no NMI: {refused.message}"
                ) from None
