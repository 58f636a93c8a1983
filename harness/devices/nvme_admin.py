"""Use an NVMe controller by its registers and queues, with operations of a guest's program.

Nothing here changes what is on a drive's media. Pure: it makes operations, and performs none.
Source: NVM Express base specification 2.0, sections 3.1.3 (registers), 3.3 (queues), 5 (commands).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from harness.guest.mmio import Op, add, inside, series, until32, wait32, write32, write64

CAP, INTMS, CC, CSTS, AQA, ASQ, ACQ = 0x00, 0x0C, 0x14, 0x1C, 0x24, 0x28, 0x30
_DOORBELLS = 0x1000
RDY, CFS = 1, 2
#: CC: EN, and the sizes of queue entries, as powers of two: IOSQES 6, IOCQES 4.
_ENABLE = 1 | 6 << 16 | 4 << 20
#: The offset of PRP entry 1 in a command.
_PRP1 = 24
#: Bytes of a submission and of a completion queue entry.
SQE_BYTES, CQE_BYTES = 64, 16
#: An admin queue has 2 to 4096 entries (AQA).
MOST_ENTRIES = 4096
#: In a completion queue entry's last 32 bits: toggles each time the queue wraps.
_PHASE = 1 << 16

_GET_LOG_PAGE, _GET_FEATURES, _SET_FEATURES, _IDENTIFY = 0x02, 0x0A, 0x09, 0x06
_CREATE_SQ, _CREATE_CQ, _COMPARE = 0x01, 0x05, 0x05
_FIRMWARE, _EFFECTS = 0x03, 0x05
#: Get Log Page leaves asynchronous events as they are (RAE).
_RETAIN = 1 << 15
_NUMBER_OF_QUEUES, _TIMESTAMP = 0x07, 0x0E
_ALL_NAMESPACES = 0xFFFF_FFFF
FIRMWARE_BYTES, EFFECTS_BYTES, TIMESTAMP_BYTES, IDENTIFY_BYTES = 512, 4096, 8, 4096
#: CNS of Identify: a namespace, the controller, and the list of active namespaces.
NAMESPACE, CONTROLLER, NAMESPACES = 0, 1, 2
#: What a controller says of itself: the offset of ONCS, 16 bits, and its bits.
ONCS, ONCS_COMPARE, ONCS_TIMESTAMP = 520, 1 << 0, 1 << 6
#: What it says of a namespace: the offset of 32 bits with FLBAS in bits 23:16, and of its formats,
#: of 32 bits each.
FLBAS_WORD, FORMATS, MOST_FORMATS = 24, 128, 64


@dataclass(frozen=True)
class Capabilities:
    """The capability register (CAP) of a controller."""

    value: int

    @property
    def seconds(self) -> float:
        """Return how long the controller may take to become ready, or not ready (CAP.TO)."""
        return max(1, self.value >> 24 & 0xFF) * 0.5

    @property
    def page_bytes(self) -> int:
        """Return the smallest memory page that the controller can use (CAP.MPSMIN)."""
        return 4096 << (self.value >> 48 & 0xF)

    @property
    def configuration(self) -> int:
        """Return the value of CC that enables the controller with its smallest page, for the NVM
        command set, or for all sets if it does not have that one by itself (CAP.CSS)."""
        command_set = 0 if self.value >> 37 & 1 else 0b110
        return _ENABLE | (self.value >> 48 & 0xF) << 7 | command_set << 4

    def doorbell(self, queue: int, *, completion: bool = False) -> int:
        """Return the offset of a queue's doorbell: the tail of its submission queue, or the head of
        its completion queue (CAP.DSTRD)."""
        return _DOORBELLS + (2 * queue + completion) * (4 << (self.value >> 32 & 0xF))


class Buffer(NamedTuple):
    """A piece of memory: its offset for the program, and its IOVA for the controller."""

    at: int
    iova: int


@dataclass(frozen=True)
class Command:
    """A command: its submission queue entry, without the command identifier."""

    opcode: int
    namespace: int = 0
    prp1: int = 0
    prp2: int = 0
    dwords10_11: int = 0
    dwords12_13: int = 0


def block_bytes(flbas_word: int, formats: Sequence[int]) -> int:
    """Return the size of a namespace's blocks, from the words at FLBAS_WORD and FORMATS; 0 if they
    have metadata."""
    flbas = flbas_word >> 16
    used = formats[flbas & 0xF | (flbas >> 5 & 0b11) << 4]
    return 0 if used & 0xFFFF else 1 << (used >> 16 & 0xFF)


def _second(iova: int, length: int, page_bytes: int) -> int:
    """Return PRP entry 2 of a command that moves up to a page at an IOVA: the page after the first
    boundary, if data is there."""
    beyond = (iova // page_bytes + 1) * page_bytes
    return beyond if iova + length > beyond else 0


def get_log_page(iova: int, length: int, page_bytes: int) -> Command:
    """Return the command that writes `length` bytes, a multiple of 4, at an IOVA that is a multiple
    of 4: of the log of firmware slots up to 512 bytes, of the log of supported commands above that.

    Every controller has the first. It is in the controller's memory; for the SMART log a drive asks
    its sensors and counters, which may take milliseconds.
    """
    log = _FIRMWARE if length <= FIRMWARE_BYTES else _EFFECTS
    return Command(
        _GET_LOG_PAGE,
        _ALL_NAMESPACES,
        iova,
        _second(iova, length, page_bytes),
        log | _RETAIN | (length // 4 - 1) << 16,
    )


def get_number_of_queues() -> Command:
    """Return a command that every controller has, and that moves no data."""
    return Command(_GET_FEATURES, dwords10_11=_NUMBER_OF_QUEUES)


def set_timestamp(iova: int, page_bytes: int) -> Command:
    """Return the command that reads 8 bytes at an IOVA and sets the controller's clock to them. A
    controller that cannot read them leaves its clock; its next reset resets it."""
    second = _second(iova, TIMESTAMP_BYTES, page_bytes)
    return Command(_SET_FEATURES, prp1=iova, prp2=second, dwords10_11=_TIMESTAMP)


def identify(iova: int, structure: int, namespace: int = 0) -> Command:
    """Return the command that writes 4096 bytes of an identification (CNS) at a page's IOVA."""
    return Command(_IDENTIFY, namespace, iova, dwords10_11=structure)


def create_queues(completion: int, submission: int, entries: int) -> tuple[Command, Command]:
    """Return the commands that create the I/O queues number 1 at two pages' IOVAs."""
    size = (entries - 1) << 16 | 1
    contiguous, of_queue_1 = 1, 1 << 16
    return (
        Command(_CREATE_CQ, prp1=completion, dwords10_11=size | contiguous << 32),
        Command(_CREATE_SQ, prp1=submission, dwords10_11=size | (of_queue_1 | contiguous) << 32),
    )


def compare(iova: int, length: int, page_bytes: int, namespace: int, block_bytes: int) -> Command:
    """Return the command of an I/O queue that reads `length` bytes, a multiple of a block's, at an
    IOVA, to compare them with the first blocks of a namespace."""
    blocks = length // block_bytes - 1
    second = _second(iova, length, page_bytes)
    return Command(_COMPARE, namespace, iova, second, dwords12_13=blocks)


class QueuePair:
    """A pair of queues of a controller, and the operations that use them: 0 is the admin queue.

    The object knows the queue's indices. Its operations must be performed in the order in which
    they were asked for; they begin and end on `registers`.
    """

    def __init__(
        self,
        capabilities: Capabilities,
        number: int,
        entries: int,
        submission: Buffer,
        completion: Buffer,
        registers: str,
        memory: str,
    ) -> None:
        self.capabilities, self.number, self.entries = capabilities, number, entries
        self.submission, self.completion = submission, completion
        self.registers, self.memory = registers, memory
        self._put = 0  # commands, since the queue was enabled

    # -- the controller --------------------------------------------------------------------

    def disable(self) -> list[Op]:
        """Return what resets the controller: it makes no DMA afterwards. This ends in an error
        after CAP.TO."""
        return [
            write32(CC, 0),
            until32(CSTS, RDY, 0, seconds=self.capabilities.seconds),
        ]

    def enable(self, submission: int | None = None, completion: int | None = None) -> list[Op]:
        """Return what resets the controller and enables it with these admin queues, or with queues
        at other IOVAs. This ends in an error after CAP.TO."""
        size = self.entries - 1
        asq = self.submission.iova if submission is None else submission
        acq = self.completion.iova if completion is None else completion
        return [
            *self.disable(),
            *self.clear(),
            write32(INTMS, 0xFFFF_FFFF),
            write32(AQA, size << 16 | size),
            write64(ASQ, asq),
            write64(ACQ, acq),
            write32(CC, self.capabilities.configuration),
            until32(CSTS, RDY | CFS, RDY, seconds=self.capabilities.seconds),
        ]

    def clear(self) -> list[Op]:
        """Return what makes the completions in memory those of no command."""
        self._put = 0
        return [
            inside(self.memory),
            series(self.completion.at + 8, CQE_BYTES, self.entries, 0, 0),
            inside(self.registers),
        ]

    # -- commands --------------------------------------------------------------------------

    def put(self, command: Command, count: int = 1, step: int = 0) -> list[Op]:
        """Return what puts a command into the queue `count` times, each with a PRP1 that is `step`
        higher, without telling the controller. The queue has room for `entries` - 1 commands."""
        first = min(count, self.entries - self._tail)
        ops = self.filled(self._tail, command, first, step)
        if count > first:
            rest = replace(command, prp1=command.prp1 + first * step)
            ops += self.filled(0, rest, count - first, step)
        self._put += count
        return ops

    def filled(self, index: int, command: Command, count: int, step: int) -> list[Op]:
        """Return what writes a command into `count` entries, as `put` does, without putting them
        into the queue: see `put_again`."""
        at = self.submission.at + index * SQE_BYTES
        words = {
            # The command identifier is the entry's index.
            0: (command.opcode | index << 16 | command.namespace << 32, 1 << 16),
            _PRP1: (command.prp1 & (1 << 64) - 1, step),
            32: (command.prp2, 0),
            40: (command.dwords10_11, 0),
            48: (command.dwords12_13, 0),
        }
        return [
            inside(self.memory),
            *(
                series(at + offset, SQE_BYTES, count, value, by)
                for offset, (value, by) in words.items()
            ),
            inside(self.registers),
        ]

    def put_again(self, count: int, step: int = 0) -> list[Op]:
        """Return what puts the commands that are in the next entries into the queue, each with a
        PRP1 that is `step` higher. They must not wrap."""
        at = self.submission.at + self._tail * SQE_BYTES + _PRP1
        self._put += count
        if not step:
            return []
        return [inside(self.memory), add(at, SQE_BYTES, count, step), inside(self.registers)]

    def ring(self) -> list[Op]:
        """Return what tells the controller of all commands that were put."""
        return [write32(self.capabilities.doorbell(self.number), self._tail)]

    def completed(self) -> tuple[int, int, int]:
        """Return the offset in memory, the mask and the value of the 32 bits that tell that the
        controller has completed all commands that were put."""
        turn, index = divmod(self._put - 1, self.entries)
        at = self.completion.at + index * CQE_BYTES + CQE_BYTES - 4
        return at, _PHASE, 0 if turn % 2 else _PHASE

    def carry_out(
        self, command: Command, count: int = 1, step: int = 0, *, seconds: float = 10.0
    ) -> list[Op]:
        """Return what has the controller carry out a command `count` times, as `put` says, and
        waits until it is done, `seconds` at most."""
        return [*self.put(command, count, step), *self.done(seconds)]

    def done(self, seconds: float = 10.0) -> list[Op]:
        """Return what has the controller carry out all commands that were put, and waits until it
        is done, `seconds` at most."""
        return [
            *self.ring(),
            inside(self.memory),
            until32(*self.completed(), seconds=seconds),
            inside(self.registers),
            write32(self.capabilities.doorbell(self.number, completion=True), self._tail),
        ]

    def attempt(self, command: Command, *, seconds: float) -> list[Op]:
        """Return what puts a command into the queue and waits until it is completed, `seconds` at
        most: a controller may stop instead. It must be enabled again then."""
        return [
            *self.put(command),
            *self.ring(),
            inside(self.memory),
            wait32(*self.completed(), seconds=seconds),
            inside(self.registers),
        ]

    @property
    def _tail(self) -> int:
        return self._put % self.entries

    @property
    def fresh(self) -> bool:
        """Return whether the queue's indices, and what tells of completion, are as after
        `enable`."""
        return self._put % (2 * self.entries) == 0
