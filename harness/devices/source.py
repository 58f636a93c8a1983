"""A device that performs a DMA that we choose, driven from inside the guest."""

from __future__ import annotations

import abc

from harness.devices.dma import Dma
from harness.errors import ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, Op, pause, repeat
from harness.steps import step


class FaultSource(abc.ABC):
    """A device of one guest, made ready on construction: enabled and a bus master.

    Raises ProductError when the guest does not show it, or when a driver holds it.
    """

    def __init__(self, guest: Guest, assigned: AssignedDevice) -> None:
        self.guest, self.assigned = guest, assigned
        self.bar = Mmio(guest, f"{assigned.sysfs}/resource0")
        self._enable()

    @property
    def vsid(self) -> int:
        """Its StreamID in the guest."""
        return self.assigned.vsid

    def __str__(self) -> str:
        return f"{self.assigned.role} at {self.assigned.guest_bdf}"

    def _enable(self) -> None:
        # PCI_COMMAND, offset 4: memory space and bus master.
        done = self.guest.run(
            f"cd {self.assigned.sysfs} && [ ! -e driver ] && echo 1 >enable && "
            r"printf '\6' | dd of=config bs=1 seek=4 conv=notrunc 2>/dev/null && "
            "echo $(cat vendor device)",
            check=False,
        )
        if done.status != 0:
            raise ProductError(
                f"{self} cannot be used in guest {self.guest.name}: absent, or held by a driver. "
                f"{done.text}"
            )

    @abc.abstractmethod
    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0) -> str:
        """Return the guest's command line that performs it so often, with pauses of milliseconds,
        and ends when the device is through. Raises HarnessError for a DMA that it cannot do."""

    def perform(self, dma: Dma, *, times: int = 1) -> None:
        """Perform it and wait until the device is through. Raises HarnessError for a DMA that this
        device cannot do; nothing is written to it then."""
        command = self.command(dma, times=times)
        what = f"{self}: {times} × {dma}"
        with step(what):
            self.guest.run(command, timeout=30 + dma.length * times / 10_000, what=what)


def again(times: int, pause_ms: int) -> list[Op]:
    """Return the end of a program that is to be done so many times."""
    return [*([pause(pause_ms)] if pause_ms else []), repeat(times)]
