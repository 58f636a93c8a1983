"""Devices that perform a DMA we choose, driven from inside the guest.

Register layouts: QEMU's docs/specs/edu.rst and hw/misc/edu.c; docs/specs/iommu-testdev.rst and
include/hw/misc/iommu-testdev.h. Both raise one event per four bytes of a faulting DMA.
"""

from __future__ import annotations

import abc
import enum
import shlex
from dataclasses import dataclass

from harness.errors import HarnessError, ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.smmu.events import EventRecord, EventType
from harness.steps import step

#: The width of the accesses that both devices' DMA is made of while it faults.
ACCESS_BYTES = 4
#: What a guest maps one to one for devices behind an accelerated SMMU (an RMR node of QEMU's IORT):
#: there the host has its MSI doorbells (Linux: MSI_IOVA_BASE). A DMA to it that faults does so in
#: stage 2, and is the host's.
DOORBELLS = range(0x0800_0000, 0x0810_0000)
_U64 = 1 << 64


class Direction(enum.Enum):
    """Seen from the device: READ takes data out of memory, WRITE puts data into it."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True)
class Dma:
    """A DMA to perform: `length` bytes at `iova`."""

    iova: int
    length: int
    direction: Direction

    def __post_init__(self) -> None:
        if not (self.iova >= 0 and self.length > 0 and self.iova + self.length <= _U64):
            raise HarnessError(f"no DMA: {self.length} bytes at {self.iova:#x}")

    def __str__(self) -> str:
        return f"{self.direction.value} {self.length} bytes at {self.iova:#x}"

    @property
    def faults(self) -> int:
        """How many events it raises when nothing of it is mapped. Accesses are aligned."""
        first, last = self.iova // ACCESS_BYTES, (self.iova + self.length - 1) // ACCESS_BYTES
        return last - first + 1

    def expected(self, kind: EventType, vsid: int) -> list[EventRecord]:
        """The records of a DMA whose every access meets the same stage-1 translation fault."""
        start = self.iova
        records = []
        while start < self.iova + self.length:
            records.append(
                EventRecord.stage1_fault(
                    kind, sid=vsid, input_addr=start, rnw=self.direction is Direction.READ
                )
            )
            start = (start // ACCESS_BYTES + 1) * ACCESS_BYTES
        return records


class Gadget(abc.ABC):
    """A device of one guest, made ready on construction: enabled and a bus master.

    Raises HarnessError when a driver holds it, ProductError when the guest does not show it.
    """

    role: str

    def __init__(self, guest: Guest, device: AssignedDevice) -> None:
        self.guest, self.device = guest, device
        self.sysfs = f"/sys/bus/pci/devices/{device.guest_bdf}"
        self._enable()

    def _enable(self) -> None:
        # PCI_COMMAND, offset 4: memory space and bus master.
        done = self.guest.run(
            f"cd {self.sysfs} && [ ! -e driver ] && echo 1 >enable && "
            r"printf '\6' | dd of=config bs=1 seek=4 conv=notrunc 2>/dev/null && "
            "echo $(cat vendor device)",
            check=False,
        )
        if done.status != 0:
            raise ProductError(
                f"{self.role} at {self.device.guest_bdf} cannot be used in guest "
                f"{self.guest.name}: absent, or held by a driver. {done.text}"
            )

    def _mmio(self, ops: list[str]) -> list[str]:
        """The guest's command for reads and writes of BAR 0 in order (see guest-tool.c)."""
        return ["hil", "mmio", f"{self.sysfs}/resource0", *ops]

    def _values(self, command: list[str], timeout: float = 30.0, what: str = "") -> list[int]:
        said = self.guest.run(shlex.join(command), timeout=timeout, what=what)
        return [int(word, 16) for word in said.text.split()]

    @abc.abstractmethod
    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0) -> list[str]:
        """The guest's command line that does it, with pauses, and ends when the device is through.
        Raises HarnessError for a DMA that this device cannot do."""

    def perform(self, dma: Dma, *, times: int = 1) -> None:
        """Do it and wait until the device is through. Raises HarnessError for a DMA that this
        device cannot do; nothing is written to it then."""
        command = self.command(dma, times=times)
        what = f"{self.role} at {self.device.guest_bdf}: {times} × {dma}"
        with step(what):
            self._values(command, timeout=30 + dma.length * times / 10_000, what=what)


class Edu(Gadget):
    """QEMU's educational device (1234:11e8). Its DMA runs 100 ms after the command.

    An address outside its 4 KiB buffer would corrupt the emulator, so lengths are checked here.
    """

    role = "edu"
    IDENTIFICATION, SRC, DST, COUNT, COMMAND = 0x00, 0x80, 0x88, 0x90, 0x98
    BUFFER, BUFFER_BYTES = 0x40000, 4096
    RUN, TO_MEMORY = 1, 2
    IDENTITY = 0x0100_00ED

    def __init__(self, guest: Guest, device: AssignedDevice) -> None:
        super().__init__(guest, device)
        if self._values(self._mmio([f"r32:{self.IDENTIFICATION:#x}"])) != [self.IDENTITY]:
            raise ProductError(f"the device at {self.device.guest_bdf} is no edu")

    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0) -> list[str]:
        if dma.length > self.BUFFER_BYTES:
            raise HarnessError(f"edu moves {self.BUFFER_BYTES} bytes at most, not {dma.length}")
        write = dma.direction is Direction.WRITE
        source, target = (self.BUFFER, dma.iova) if write else (dma.iova, self.BUFFER)
        command = self.RUN | (self.TO_MEMORY if write else 0)
        return self._mmio(
            [
                f"w64:{self.SRC:#x}={source:#x}",
                f"w64:{self.DST:#x}={target:#x}",
                f"w64:{self.COUNT:#x}={dma.length}",
                f"w64:{self.COMMAND:#x}={command}",
                f"until32:{self.COMMAND:#x}&{self.RUN}=0",
                *_again(times, pause_ms),
            ]
        )


class IommuTestdev(Gadget):
    """QEMU's iommu-testdev (1b36:0005). It writes by DMA, synchronously; its "read back" goes
    past the IOMMU, so it cannot make a read fault. The best source of floods."""

    role = "iommu-testdev"
    TRIGGER, IOVA_LOW, IOVA_HIGH, LENGTH = 0x00, 0x04, 0x08, 0x0C
    RESULT, DOORBELL, GPA_LOW, GPA_HIGH = 0x10, 0x14, 0x1C, 0x20
    #: The emulator allocates two buffers of this size and holds its lock meanwhile.
    LONGEST = 1 << 20

    def __init__(self, guest: Guest, device: AssignedDevice) -> None:
        super().__init__(guest, device)
        # It has no identification register; a BAR that does not answer reads as all ones.
        if self._values(self._mmio([f"r32:{self.TRIGGER:#x}"])) != [0]:
            raise ProductError(f"the device at {self.device.guest_bdf} is no iommu-testdev")

    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0) -> list[str]:
        if dma.direction is not Direction.WRITE:
            raise HarnessError("iommu-testdev cannot read through the IOMMU; take edu")
        if dma.length > self.LONGEST:
            raise HarnessError(f"iommu-testdev: {dma.length} bytes, at most {self.LONGEST}")
        return self._mmio(
            [
                f"w32:{self.IOVA_LOW:#x}={dma.iova & 0xFFFF_FFFF:#x}",
                f"w32:{self.IOVA_HIGH:#x}={dma.iova >> 32:#x}",
                f"w32:{self.LENGTH:#x}={dma.length}",
                f"w32:{self.GPA_LOW:#x}=0",
                f"w32:{self.GPA_HIGH:#x}=0",
                f"w32:{self.DOORBELL:#x}=1",
                f"r32:{self.TRIGGER:#x}",
                f"r32:{self.RESULT:#x}",
                *_again(times, pause_ms),
            ]
        )


def _again(times: int, pause_ms: int) -> list[str]:
    """The end of a program that is to be done so many times."""
    return [*([f"pause:{pause_ms}"] if pause_ms else []), f"repeat:{times}"]


GADGETS: dict[str, type[Gadget]] = {kind.role: kind for kind in (Edu, IommuTestdev)}


def gadget(guest: Guest, role: str, smmu: int | None = None) -> Gadget:
    """The gadget of a role in a guest, ready. Raises HarnessError for a role that is none."""
    if role not in GADGETS:
        raise HarnessError(f"{role} is no gadget; there are {', '.join(GADGETS)}")
    return GADGETS[role](guest, guest.device(role, smmu))
