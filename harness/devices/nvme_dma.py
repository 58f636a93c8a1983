"""Make an NVMe drive perform DMA: by its commands, their completions and their data."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable
from typing import Self

from harness.devices.dma import Dma
from harness.devices.nvme_admin import (
    CAP,
    CFS,
    CQE_BYTES,
    CSTS,
    EFFECTS_BYTES,
    FIRMWARE_BYTES,
    MOST_ENTRIES,
    SQE_BYTES,
    Buffer,
    Capabilities,
    Command,
    QueuePair,
    get_log_page,
    get_number_of_queues,
)
from harness.devices.source import again, prepared, with_registers
from harness.devices.vfio_source import MARK, OWN, VfioSource
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.mmio import (
    MEMORY,
    START,
    Op,
    command,
    inside,
    pause,
    read32,
    read64,
    repeat,
    series32,
    wait32,
)
from harness.guest.pages import pin_page
from harness.guest.vfio import BAR0, map_memory, vfio_command
from harness.guest.vfio import MEMORY as PROGRAM_MEMORY
from harness.host.ability import Ability
from harness.smmu.access import WORD_BYTES, Access
from harness.smmu.events import EventType

#: How many bytes a controller may fetch at once.
_LINE_BYTES = 512
#: How long a controller may take to stop, if it stops at an access that faults.
_FATAL_SECONDS = 0.5
#: How long it may take to carry out the commands of a long burst that it was told of at once.
_BURST_SECONDS = 60.0
#: How long a controller may take to complete a command, if it reaches its queues.
_REACH_SECONDS = 1.0
#: Pages behind the admin queue, for all ways.
_PAGES = 4


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class NvmeSource(VfioSource):
    """An NVMe drive whose controller is told by its queues to perform DMA. What is on its media
    never changes.

    Raises ProductError as FaultSource, LabError for a controller that does not become ready within
    the time that it promises (CAP.TO).
    """

    alignment = 4
    longest = EFFECTS_BYTES
    vital = frozenset({CSTS})

    def __init__(self, guest: Guest, assigned: AssignedDevice) -> None:
        super().__init__(guest, assigned, read64(CAP))
        self.capabilities = Capabilities(self.read[0])
        #: What the drive's IOVAs of memory are above physical addresses, in the kernel's domain.
        self._offset: int | None = None
        #: The physical addresses of pages that the guest has pinned.
        self._pinned: list[int] = []

    def in_kernels_domain(self, offset: int) -> Self:
        """Return the source as FaultSource says. The drive has no driver from now on."""
        source = copy.copy(self)
        with_registers(self.guest, self.assigned)
        source._offset = offset
        return source

    # -- memory ----------------------------------------------------------------------------

    @property
    def _places(self) -> tuple[str, str]:
        """Return the files in which a program has registers and memory."""
        if self._offset is None:
            return BAR0, PROGRAM_MEMORY
        return f"{self.assigned.sysfs}/resource0", MEMORY

    def _pinned_page(self, number: int) -> Buffer:
        """Return a page of the guest, in the kernel's domain."""
        assert self._offset is not None
        while len(self._pinned) <= number:
            self._pinned.append(pin_page(self.guest))
        page = self._pinned[number]
        return Buffer(page, page + self._offset)

    def _queue(self, entries: int) -> QueuePair:
        """Return the admin queue, which is at the start of the program's memory, or in two pages
        of the guest."""
        capabilities = self.capabilities
        if self._offset is None:
            completion = _round_up(entries * SQE_BYTES, capabilities.page_bytes)
            buffers = Buffer(0, OWN), Buffer(completion, OWN + completion)
        else:
            buffers = self._pinned_page(0), self._pinned_page(1)
        return QueuePair(capabilities, 0, entries, *buffers, *self._places)

    def _page(self, queue: QueuePair, number: int) -> Buffer:
        """Return page `number` of those that a way has besides its admin queue."""
        if self._offset is not None:
            return self._pinned_page(2 + number)
        size = self.capabilities.page_bytes
        at = queue.completion.at + _round_up(queue.entries * CQE_BYTES, size) + number * size
        return Buffer(at, OWN + at)

    def _program(self, queue: QueuePair, ops: list[Op]) -> str:
        """Return the guest's shell command that performs operations, and resets the controller."""
        ops = [*ops, *queue.disable()]
        if self._offset is not None:
            return command(queue.registers, *ops)
        size = self._page(queue, _PAGES).at
        return vfio_command(self.assigned.guest_bdf, size, map_memory(OWN, 0, size), *ops)

    def _log_page(self, iova: int, length: int) -> Command:
        return get_log_page(iova, length, self.capabilities.page_bytes)


class LogWords(NvmeSource):
    """Writes of four bytes, each by a command of its own (Get Log Page): each raises one record, on
    any hardware."""

    way = "log-words"
    can = frozenset({Ability.WRITE, Ability.FLOOD, Ability.REACH})
    longest = 1 << 20
    #: The most commands that the controller is told of at once.
    _MOST = MOST_ENTRIES // 2 - 1

    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0, delay_ms: int = 0) -> str:
        """Return the guest's shell command as FaultSource.command says."""
        self.check(dma)
        words, most = dma.length // WORD_BYTES, self._MOST if self._offset is None else 31
        if words <= most:
            return self._short(dma, words, times, pause_ms, delay_ms)
        once = self._long(dma, words, most, delay_ms)
        if times == 1:
            return once
        return f"(for i in $(seq {times}); do {once} || exit; usleep {pause_ms * 1000}; done)"

    def _short(self, dma: Dma, words: int, times: int, pause_ms: int, delay_ms: int) -> str:
        """Return the command for a DMA whose commands fill a half of the queue: the same commands
        are in both halves."""
        queue = self._queue(2 * words)
        write = self._log_page(dma.iova, WORD_BYTES)
        ops = [
            *queue.filled(0, write, words, WORD_BYTES),
            *queue.filled(words, write, words, WORD_BYTES),
        ]

        def once() -> list[Op]:
            pauses = [pause(pause_ms)] if pause_ms else []
            return [*queue.put_again(words), *queue.done(), *pauses]

        return self._halves(queue, ops, once, times, delay_ms)

    def _long(self, dma: Dma, words: int, most: int, delay_ms: int) -> str:
        """Return the command for a DMA whose commands fill many halves of the queue, one after the
        other. Each half gets the same commands again, further on."""
        queue, step = self._queue(2 * most), 2 * most * WORD_BYTES
        write = self._log_page(dma.iova - step, WORD_BYTES)

        def once(count: int = most) -> list[Op]:
            return [*queue.put_again(count, step), *queue.done(_BURST_SECONDS)]

        halves, rest = divmod(words, most)
        ops = queue.filled(0, write, 2 * most, WORD_BYTES)
        return self._halves(queue, ops, once, halves, delay_ms, lambda: once(rest) if rest else [])

    def _halves(
        self,
        queue: QueuePair,
        ops: list[Op],
        once: Callable[[], list[Op]],
        times: int,
        delay_ms: int,
        last: Callable[[], list[Op]] = list,
    ) -> str:
        """Return the command that performs `once`, which takes a half of the queue, `times` times,
        and then `last`."""
        ops = [*queue.enable(), *ops, *prepared(CSTS, delay_ms), START]
        # The queue is as at the beginning again after four halves: it has turned twice.
        turns, rest = divmod(times, 4)
        loop = [op for _ in range(4) for op in once()]
        assert queue.fresh
        ops += [*loop, repeat(turns)] if turns else []
        ops += [op for _ in range(rest) for op in once()]
        return self._program(queue, [*ops, *last()])

    def reaches(self, offset: int = 0) -> bool:
        """Return whether the drive reads and writes the guest's memory: it reads a command and
        writes its completion."""
        source = self if self._offset == offset else self.in_kernels_domain(offset)
        queue = source._queue(2)
        ops = [
            *queue.enable(),
            *queue.attempt(get_number_of_queues(), seconds=_REACH_SECONDS),
        ]
        completed, mask, _ = queue.completed()
        ops += [inside(queue.memory), read32(completed), inside(queue.registers)]
        program = source._program(queue, ops)
        return bool(source.run(program, 0, f"{self}: does it reach memory?")[0] & mask)


class MarkedSource(NvmeSource):
    """A way in which the number of records is not known, because the controller or the bus may cut
    an access in pieces. Each DMA is followed by a write of four bytes at MARK: all its records are
    there when that of MARK is."""

    cut = True
    _entries = 4

    def command(self, dma: Dma, *, times: int = 1, pause_ms: int = 0, delay_ms: int = 0) -> str:
        """Return the guest's shell command as FaultSource.command says."""
        self.check(dma)
        queue = self._queue(self._entries)
        ops = [*prepared(CSTS, delay_ms), START, *self._once(queue, dma)]
        return self._program(queue, [*ops, *self._marked(queue), *again(times, pause_ms)])

    @abc.abstractmethod
    def _once(self, queue: QueuePair, dma: Dma) -> list[Op]:
        """Return the operations that perform a DMA once, from any state of the controller."""

    def _marked(self, queue: QueuePair) -> list[Op]:
        return [*queue.enable(), *queue.carry_out(self._log_page(MARK, WORD_BYTES))]

    def expected(self, dma: Dma, kind: EventType = EventType.F_TRANSLATION) -> list[Access]:
        """Return the accesses as FaultSource.expected says, and that at MARK."""
        return self.marked(super().expected(dma, kind))


class LogPage(MarkedSource):
    """A write of a chosen address and length, by one command (Get Log Page)."""

    way = "log-page"
    can = frozenset({Ability.WRITE, Ability.EXACT_LENGTH})
    grain = EFFECTS_BYTES
    longest = FIRMWARE_BYTES

    @property
    def unit(self) -> int:
        """Return the smallest length."""
        return WORD_BYTES

    def _once(self, queue: QueuePair, dma: Dma) -> list[Op]:
        return [*queue.enable(), *queue.carry_out(self._log_page(dma.iova, dma.length))]


class QueueFetch(MarkedSource):
    """A read of a chosen page: the controller fetches a command from it. It may fetch more than one
    command at once, and may stop (CSTS.CFS) or try again."""

    way = "queue-fetch"
    can = frozenset({Ability.READ})
    grain = SQE_BYTES
    alignment = 4096
    longest = SQE_BYTES

    def _once(self, queue: QueuePair, dma: Dma) -> list[Op]:
        fetch = [*queue.enable(submission=dma.iova), *queue.put(get_number_of_queues())]
        return [*fetch, *queue.ring(), wait32(CSTS, CFS, CFS, seconds=_FATAL_SECONDS)]

    def expected(self, dma: Dma, kind: EventType = EventType.F_TRANSLATION) -> list[Access]:
        """Return the accesses as NvmeSource says; the fetch may take _LINE_BYTES."""
        fetch, *rest = super().expected(dma, kind)
        return [Access.cut(fetch.record, _LINE_BYTES), *rest]


class Completions(MarkedSource):
    """Writes of 16 bytes from a chosen page on, one a command: completions, which a real controller
    writes without learning that they fault. QEMU's controller stops at the first (CSTS.CFS)."""

    way = "completions"
    can = frozenset({Ability.WRITE, Ability.FLOOD})
    grain = CQE_BYTES
    alignment = 4096
    longest = (MOST_ENTRIES - 1) * CQE_BYTES
    _entries = MOST_ENTRIES

    def _once(self, queue: QueuePair, dma: Dma) -> list[Op]:
        count = -(-dma.length // CQE_BYTES)
        tail = queue.capabilities.doorbell(0)
        return [
            *queue.enable(completion=dma.iova),
            *queue.put(get_number_of_queues(), count),
            series32(tail, 0, count, 1, 1),
            wait32(CSTS, CFS, CFS, seconds=_FATAL_SECONDS),
        ]

    def expected(self, dma: Dma, kind: EventType = EventType.F_TRANSLATION) -> list[Access]:
        """Return one access for all: which of the completions are written is the controller's."""
        first, *others, mark = super().expected(dma, kind)
        return [Access.cut(first.record, (1 + len(others)) * CQE_BYTES), mark]
