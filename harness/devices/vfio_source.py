"""Make a device perform DMA by a program in the guest that drives it through vfio-pci.

The device has an address space of its own then, in which only the program's memory is mapped.

The program's end resets the device, and so does its beginning: a function level reset, where the
device has one. So each command finds the device as after power-on, whatever a fault did to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from harness.devices.dma import Dma
from harness.devices.source import FaultSource
from harness.errors import HarnessError, LabError, ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.mmio import Op
from harness.guest.vfio import lent
from harness.smmu.access import Access
from harness.smmu.events import EventRecord, EventType
from harness.steps import step

#: The IOVA from which on the device finds the program's memory. Tests choose none so high.
OWN = 1 << 40
#: The IOVA of the write that follows a DMA whose number of records is not known.
MARK = 0x7FFE_0000
#: How long a repetition may take besides its accesses: it may reset the device several times.
_REPETITION_SECONDS = 5.0


class VfioSource(FaultSource):
    """A source that the guest's vfio-pci drives. A DMA has a multiple of `unit` bytes.

    Raises ProductError as FaultSource.
    """

    #: Registers that tell whether the device itself works: if a wait for one of them expires, the
    #: device is broken.
    vital: ClassVar[frozenset[int]]

    def __init__(self, guest: Guest, assigned: AssignedDevice, *ops: Op) -> None:
        super().__init__(guest, assigned)
        #: What operations read of BAR 0 while no driver had the device.
        self.read = lent(guest, assigned, *ops)

    def check(self, dma: Dma) -> None:
        """Raise HarnessError as FaultSource.check, and for another length."""
        super().check(dma)
        if dma.length % self.unit:
            raise HarnessError(
                f"{self} cannot move {dma.length} bytes by its {self.way}",
                fix=f"choose a multiple of {self.unit} bytes",
            )

    def perform(self, dma: Dma, *, times: int = 1) -> None:
        """Perform a DMA as FaultSource.perform says. Raises LabError for a device that does not
        become ready, ProductError for one that does not do what it is told."""
        seconds = times * (_REPETITION_SECONDS + dma.length / 2_000)
        self.run(self.command(dma, times=times), seconds, f"{self}: {times} × {dma}")

    def run(self, command: str, seconds: float, what: str) -> list[int]:
        """Run a program that may take `seconds` for its DMA, and return what it read. `what` is its
        purpose, for reports. Raises as `perform`."""
        with step(what):
            done = self.guest.run(command, timeout=60 + seconds, what=what, check=False)
        said = done.text.strip()
        if any(f" at {register:#x} of " in said for register in self.vital):
            raise LabError(
                f"{self} does not become ready, or not ready, in its time: {said}",
                fix="power the host off and on; list the device no more in the inventory if it "
                "fails again",
            )
        if done.status != 0:
            raise ProductError(f"{self} did not do what it was told: {said}")
        return [int(word, 16) for word in said.split()]

    def marked(self, accesses: Sequence[Access]) -> list[Access]:
        """Return accesses, and that at MARK after them: all their records are there when that of
        MARK is."""
        mark = EventRecord.stage1_fault(
            EventType.F_TRANSLATION, sid=self.vsid, input_addr=MARK, rnw=False
        )
        return [*accesses, Access(mark)]
