"""Make a device of a guest perform a DMA that we choose, by commands in the guest."""

from __future__ import annotations

import abc

from harness.devices.dma import Dma
from harness.errors import ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, Op, pause, repeat
from harness.steps import step


class FaultSource(abc.ABC):
    """A device of one guest that can be told to perform a DMA. It is enabled, and made a bus
    master, on construction.

    Raises ProductError if the guest does not have the device, or a driver in the guest uses it.
    """

    def __init__(self, guest: Guest, assigned: AssignedDevice) -> None:
        self.guest, self.assigned = guest, assigned
        self.bar = Mmio(guest, f"{assigned.sysfs}/resource0")
        self._enable()

    @property
    def vsid(self) -> int:
        """Return the device's StreamID in the guest."""
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
                f"{self} cannot be used in guest {self.guest.name}: the guest does not have it, or "
                f"a driver uses it. {done.text}"
            )

    @abc.abstractmethod
    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0) -> str:
        """Return the guest's shell command that performs a DMA `times` times, with pauses of
        `pause_ms` milliseconds, and ends when the device has finished. Raises HarnessError for a
        DMA that the device cannot perform."""

    def perform(self, dma: Dma, *, times: int = 1) -> None:
        """Perform a DMA `times` times, and wait until the device has finished. Raises HarnessError
        for a DMA that the device cannot perform; nothing is written to the device then."""
        command = self.command(dma, times=times)
        what = f"{self}: {times} × {dma}"
        with step(what):
            self.guest.run(command, timeout=30 + dma.length * times / 10_000, what=what)


def again(times: int, pause_ms: int) -> list[Op]:
    """Return the last operations of a program that is performed `times` times, with pauses."""
    return [*([pause(pause_ms)] if pause_ms else []), repeat(times)]
