"""Make a device of a guest perform a DMA that we choose, by commands in the guest, and predict the
events that it raises."""

from __future__ import annotations

import abc
from typing import ClassVar, Self

from harness.devices.dma import UNMAPPED, Direction, Dma
from harness.errors import HarnessError, ProductError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.mmio import START, Mmio, Op, pause, read32, repeat
from harness.guest.vfio import unbind_command
from harness.host.ability import Ability
from harness.smmu.access import WORD_BYTES, Access
from harness.smmu.events import EventRecord, EventType
from harness.steps import step


class FaultSource(abc.ABC):
    """One way in which a device of a guest can be told to perform a DMA.

    A device may have several ways; each is a class, which says what it `can` do: `way` is its name.
    A DMA consists of accesses of `grain` bytes, which are aligned to their size; `cut` says whether
    the device or the bus may cut an access in smaller pieces. A DMA begins at a multiple of
    `alignment` bytes and has at most `longest`.

    The device is taken from its driver in the guest, if it has one, on construction. Raises
    ProductError if the guest does not have it.
    """

    way: ClassVar[str]
    can: ClassVar[frozenset[Ability]]
    grain: ClassVar[int] = WORD_BYTES
    cut: ClassVar[bool] = False
    alignment: ClassVar[int] = 1
    longest: int

    def __init__(self, guest: Guest, assigned: AssignedDevice) -> None:
        self.guest, self.assigned = guest, assigned

    @property
    def vsid(self) -> int:
        """Return the device's StreamID in the guest."""
        return self.assigned.vsid

    def __str__(self) -> str:
        return f"{self.assigned.role} at {self.assigned.guest_bdf}"

    # -- what it can -----------------------------------------------------------------------

    @property
    def unit(self) -> int:
        """Return how many bytes `burst` counts as one access."""
        return self.grain

    @property
    def direction(self) -> Direction:
        """Return the direction of a DMA if the test does not care: WRITE if the source can."""
        return Direction.WRITE if Ability.WRITE in self.can else Direction.READ

    def burst(self, count: int, iova: int = UNMAPPED, direction: Direction | None = None) -> Dma:
        """Return the DMA that consists of `count` accesses from `iova` on, which must be aligned to
        `grain`. Raises HarnessError as `check`."""
        dma = Dma(iova, count * self.unit, direction or self.direction)
        self.check(dma)
        return dma

    def check(self, dma: Dma) -> None:
        """Raise HarnessError for a DMA that the source cannot perform, with what it can."""
        if dma.direction.ability not in self.can:
            raise HarnessError(
                f"{self} cannot {dma.direction.value} by its {self.way}",
                fix=f"choose a source that can: {dma.direction.ability}",
            )
        if dma.length > self.longest:
            raise HarnessError(
                f"{self} cannot move {dma.length} bytes at once by its {self.way}",
                fix=f"choose at most {self.longest} bytes",
            )
        if dma.iova % self.alignment:
            raise HarnessError(
                f"{self} cannot begin at {dma.iova:#x} by its {self.way}",
                fix=f"choose a multiple of {self.alignment} bytes",
            )

    def expected(self, dma: Dma, kind: EventType = EventType.F_TRANSLATION) -> list[Access]:
        """Return the accesses of a DMA, in order, if each meets the same stage-1 fault. Raises
        HarnessError as `check`."""
        self.check(dma)
        accesses, at, end = [], dma.iova, dma.iova + dma.length
        while at < end:
            following = min(end, (at // self.grain + 1) * self.grain)
            record = EventRecord.stage1_fault(
                kind, sid=self.vsid, input_addr=at, rnw=dma.direction is Direction.READ
            )
            accesses.append(Access.cut(record, following - at) if self.cut else Access(record))
            at = following
        return accesses

    # -- doing it --------------------------------------------------------------------------

    @abc.abstractmethod
    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0, delay_ms: int = 0) -> str:
        """Return the guest's shell command that performs a DMA `times` times, with pauses of
        `pause_ms` milliseconds, and ends when the device has finished. If `delay_ms` is not 0, it
        prints a line when all is prepared, and waits so long before it begins. Raises HarnessError
        as `check`."""

    def perform(self, dma: Dma, *, times: int = 1) -> None:
        """Perform a DMA `times` times, and wait until the device has finished. Raises HarnessError
        for a DMA that the device cannot perform; nothing is written to the device then."""
        command = self.command(dma, times=times)
        what = f"{self}: {times} × {dma}"
        with step(what):
            self.guest.run(command, timeout=30 + times * (1 + dma.length / 10_000), what=what)

    def in_kernels_domain(self, offset: int) -> Self:
        """Return the source as it performs DMA in the domain that the guest's kernel made for its
        device, whose tables a test may edit. If it needs memory of its own for that, it uses pages
        of the guest, with their physical addresses plus `offset` as IOVAs. Raises HarnessError if
        it cannot work there."""
        raise HarnessError(
            f"{self} cannot work in the domain of the guest's kernel by its {self.way}",
            fix=f"choose a source that can: {Ability.REACH}",
        )

    def reaches(self, offset: int = 0) -> bool:
        """Return whether the device reads and writes the guest's memory when it uses physical
        addresses plus `offset` as IOVAs. It waits until that is certain. Raises HarnessError
        without the ability REACH."""
        raise HarnessError(
            f"{self} cannot show whether it reaches memory by its {self.way}",
            fix=f"choose a source that can: {Ability.REACH}",
        )


class RegisterSource(FaultSource):
    """A source that is driven by its registers in BAR 0 alone, through the guest's sysfs. The
    guest's kernel maps nothing for a device without a driver, so that all its DMA faults."""

    def __init__(self, guest: Guest, assigned: AssignedDevice) -> None:
        super().__init__(guest, assigned)
        self.bar = Mmio(guest, f"{assigned.sysfs}/resource0")
        with_registers(guest, assigned)

    def in_kernels_domain(self, offset: int) -> Self:
        """Return the source itself."""
        return self


def with_registers(guest: Guest, device: AssignedDevice) -> None:
    """Take a device from its driver in the guest, and enable its registers and its DMA. Raises
    ProductError if the guest does not have it."""
    # PCI_COMMAND, offset 4: memory space and bus master.
    master = r"printf '\6' | dd of=config bs=1 seek=4 conv=notrunc 2>/dev/null"
    done = guest.run(f"{unbind_command(device)} && echo 1 >enable && {master}", check=False)
    if done.status != 0:
        raise ProductError(
            f"{device.role} at {device.guest_bdf} cannot be used in guest {guest.name}: the guest "
            f"does not have it. {done.text.strip()}"
        )


def prepared(register: int, delay_ms: int) -> list[Op]:
    """Return the operations that print a line when all before them is done, by reading a register,
    and then wait `delay_ms` milliseconds; none if that is 0."""
    return [read32(register), pause(delay_ms), START] if delay_ms else []


def again(times: int, pause_ms: int) -> list[Op]:
    """Return the last operations of a program that is performed `times` times from START on, with
    pauses of `pause_ms` milliseconds."""
    return [*([pause(pause_ms)] if pause_ms else []), repeat(times)]
