"""A guest with an NVMe drive, as far as the specification says how a controller behaves: the
operations of the guest's program are interpreted, and the controller's accesses that meet no mapped
memory become event records.

It asserts what a controller may rely on: registers are written in the states in which they may be,
doorbells have values that the queue has, no entry is overwritten before it is fetched, and there is
room for each completion.
"""

from __future__ import annotations

import re
import shlex
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from harness.devices.nvme_admin import ACQ, AQA, ASQ, CAP, CC, CFS, CSTS, INTMS, RDY
from harness.guest.console import Output
from harness.smmu.events import EventRecord, EventType

#: MQES 2048, CQR, TO 7.5 s; CSS: the NVM command set.
PLAIN = 1 << 37 | 0x0F << 24 | 1 << 16 | 0x7FF
#: Of a submission queue entry: dwords 0 and 1, PRP entries 1 and 2, dwords 10 and 11, 12 and 13.
_SQE = struct.Struct("<II16xQQQQ8x")
_LOG_BYTES = {0x03: 512, 0x05: 4096}
SID = 0x2100


def cap(*, dstrd: int = 0, mpsmin: int = 0, only_all_sets: bool = False) -> int:
    """Return a capability register. `only_all_sets` is that of a controller that does not have the
    NVM command set by itself."""
    sets = 1 << 43 if only_all_sets else 1 << 37
    return PLAIN & ~(1 << 37) | sets | mpsmin << 48 | dstrd << 32


@dataclass
class Pair:
    """A submission queue and its completion queue, as the controller sees them."""

    entries: int
    submission: int
    completion: int
    head: int = 0  # of the submission queue: what is fetched next
    tail: int = 0
    done: int = 0  # completions that were posted
    taken: int = 0  # completions that the host has taken, as it told


@dataclass
class Drive:
    """A controller. `emulated` is one that cuts a faulting access in words, and stops at a
    completion that faults, as QEMU's does. Another one makes one access of it, and goes on."""

    cap: int = PLAIN
    oncs: int = 0b100_0001
    format: int = 9 << 16
    emulated: bool = True
    #: It never becomes ready; it carries out no command.
    stuck: bool = False
    idle: bool = False
    memory: bytearray = field(default_factory=bytearray)
    maps: list[tuple[int, int, int]] = field(default_factory=list)
    registers: dict[int, int] = field(default_factory=dict)
    pairs: dict[int, Pair] = field(default_factory=dict)
    completions: dict[int, tuple[int, int]] = field(default_factory=dict)
    records: list[EventRecord] = field(default_factory=list)
    #: The queue, opcode and PRP entry 1 of each command that was fetched.
    commands: list[tuple[int, int, int]] = field(default_factory=list)
    #: The registers that were written, and the values.
    log: list[tuple[int, int]] = field(default_factory=list)

    def reset(self) -> None:
        self.registers |= {CC: 0, CSTS: 0}
        self.pairs.clear()
        self.completions.clear()

    # -- memory ----------------------------------------------------------------------------

    def _piece(self, iova: int) -> tuple[int, int]:
        """Return the offset in memory of an IOVA, -1 if it is not mapped, and the bytes up to the
        end of the page."""
        left = 4096 - iova % 4096
        for start, offset, length in self.maps:
            if start <= iova < start + length:
                return offset + iova - start, left
        return -1, left

    def dma(self, iova: int, length: int, data: bytes | None = None) -> bytes | None:
        """Read `length` bytes, or write `data`. Return what was read, and None for a fault."""
        read, faulted, at = b"", False, iova
        while at < iova + length:
            offset, left = self._piece(at)
            size = min(left, iova + length - at)
            if offset < 0:
                faulted = True
                self._fault(at, size, rnw=data is None)
            elif data is None:
                read += self.memory[offset : offset + size]
            else:
                self.memory[offset : offset + size] = data[at - iova : at - iova + size]
            at += size
        return None if faulted else read

    def _fault(self, iova: int, size: int, *, rnw: bool) -> None:
        for at in range(iova, iova + size, 4 if self.emulated else 4096):
            self.records.append(
                EventRecord.stage1_fault(EventType.F_TRANSLATION, sid=SID, input_addr=at, rnw=rnw)
            )

    # -- registers -------------------------------------------------------------------------

    @property
    def page(self) -> int:
        return 4096 << (self.registers[CC] >> 7 & 0xF)

    def write(self, at: int, value: int) -> None:
        self.log.append((at, value))
        if at >= 0x1000:
            self._doorbell(at - 0x1000, value)
            return
        if at == CC:
            self._configure(value)
        else:
            assert at in (INTMS, AQA, ASQ, ACQ), f"register {at:#x} is written"
            assert at == INTMS or not self.registers[CSTS] & RDY, "it is enabled"
            self.registers[at] = value

    def read(self, at: int) -> int:
        return self.cap if at == CAP else self.registers[at]

    def _configure(self, value: int) -> None:
        if not value & 1:
            self.reset()
            self.registers[CC] = value
            return
        assert not self.registers[CC] & 1, "it is enabled twice"
        sets = self.cap >> 37 & 0xFF
        assert value >> 4 & 7 == (0 if sets & 1 else 6), "the command set is not there"
        assert value >> 7 & 0xF >= self.cap >> 48 & 0xF, "the page is too small"
        assert value >> 16 == 0x46, "entries have other sizes"
        self.registers[CC] = value
        entries = self.registers[AQA] & 0xFFF
        assert self.registers[AQA] == entries << 16 | entries
        assert entries >= 1
        bases = self.registers[ASQ], self.registers[ACQ]
        assert all(base % self.page == 0 for base in bases), "a queue begins within a page"
        self.pairs[0] = Pair(entries + 1, *bases)
        if not self.stuck:
            self.registers[CSTS] = RDY

    def _doorbell(self, at: int, value: int) -> None:
        number, rest = divmod(at, 4 << (self.cap >> 32 & 0xF))
        assert rest == 0
        pair = self.pairs[number // 2]
        assert value < pair.entries
        if number % 2:
            taken = pair.taken + (value - pair.taken) % pair.entries
            assert taken <= pair.done, "a completion is taken that was not posted"
            pair.taken = taken
        else:
            pair.tail = value

    def check_store(self, offset: int) -> None:
        """Check that a store of the host hits no entry that the controller is to fetch."""
        for pair in self.pairs.values():
            start, _ = self._piece(pair.submission)
            index = (offset - start) // 64
            if start >= 0 and 0 <= index < pair.entries:
                ahead = (index - pair.head) % pair.entries
                assert ahead >= (pair.tail - pair.head) % pair.entries, "it is to be fetched"

    # -- commands --------------------------------------------------------------------------

    def work(self) -> None:
        """Fetch and carry out all commands that were told."""
        if self.idle:
            return
        for number, pair in list(self.pairs.items()):
            while pair.head != pair.tail and not self.registers[CSTS] & CFS:
                entry = self.dma(pair.submission + 64 * pair.head, 64)
                if entry is None:
                    self.registers[CSTS] |= CFS
                    return
                pair.head = (pair.head + 1) % pair.entries
                self._carry_out(number, pair, entry)

    def _carry_out(self, number: int, pair: Pair, entry: bytes) -> None:
        word0, namespace, prp1, prp2, dw10, dw12 = _SQE.unpack(entry)
        opcode, identifier = word0 & 0xFF, word0 >> 16
        self.commands.append((number, opcode, prp1))
        carry = _COMMANDS.get((min(number, 1), opcode))
        assert carry, f"queue {number} has opcode {opcode:#x}"
        assert pair.done - pair.taken < pair.entries - 1, "there is no room for a completion"
        carry(self, namespace, prp1, prp2, dw10, dw12)
        phase = 1 - pair.done // pair.entries % 2
        at = pair.completion + 16 * (pair.done % pair.entries)
        pair.done += 1
        posted = struct.pack("<QII", 0, pair.head, phase << 16 | identifier)
        if self.dma(at, 16, posted) is None and self.emulated:
            self.registers[CSTS] = CFS

    def data(self, prp1: int, prp2: int, length: int, data: bytes | None = None) -> None:
        """Move data of up to a page by a command's two PRP entries."""
        first = min(length, self.page - prp1 % self.page)
        self.dma(prp1, first, None if data is None else data[:first])
        if length > first:
            assert prp2 % self.page == 0
            self.dma(prp2, length - first, None if data is None else data[first:])

    def get_log_page(self, namespace: int, prp1: int, prp2: int, dw10: int, _: int) -> None:
        length = ((dw10 >> 16 & 0xFFFF) + 1) * 4
        assert namespace == 0xFFFF_FFFF
        assert dw10 & 1 << 15, "asynchronous events would be cleared"
        assert length <= _LOG_BYTES[dw10 & 0xFF]
        self.data(prp1, prp2, length, bytes(length))

    def set_features(self, _: int, prp1: int, prp2: int, dw10: int, __: int) -> None:
        assert dw10 == 0x0E
        assert self.oncs & 1 << 6
        self.data(prp1, prp2, 8)

    def get_features(self, *_: int) -> None:
        pass

    def identify(self, namespace: int, prp1: int, prp2: int, dw10: int, _: int) -> None:
        content = bytearray(4096)
        if dw10 == 0:
            assert namespace == 3
            struct.pack_into("<I", content, 24, 1 << 16)
            struct.pack_into("<II", content, 128, 0xFFFF, self.format)
        elif dw10 == 1:
            struct.pack_into("<H", content, 520, self.oncs)
        else:
            assert dw10 == 2
            struct.pack_into("<I", content, 0, 3)
        self.data(prp1, prp2, 4096, bytes(content))

    def create_cq(self, _: int, prp1: int, __: int, dw10: int, ___: int) -> None:
        assert dw10 >> 32 == 1
        self.completions[dw10 & 0xFFFF] = prp1, (dw10 >> 16 & 0xFFFF) + 1

    def create_sq(self, _: int, prp1: int, __: int, dw10: int, ___: int) -> None:
        completion, entries = self.completions[dw10 >> 48]
        assert (dw10 >> 16 & 0xFFFF) + 1 == entries
        assert prp1 % self.page == completion % self.page == 0
        self.pairs[dw10 & 0xFFFF] = Pair(entries, prp1, completion)

    def compare(self, namespace: int, prp1: int, prp2: int, lba: int, blocks: int) -> None:
        assert (namespace, lba) == (3, 0)
        assert self.oncs & 1
        self.data(prp1, prp2, (blocks + 1) << (self.format >> 16))


_COMMANDS: dict[tuple[int, int], Callable[[Drive, int, int, int, int, int], None]] = {
    (0, 0x02): Drive.get_log_page,
    (0, 0x09): Drive.set_features,
    (0, 0x0A): Drive.get_features,
    (0, 0x06): Drive.identify,
    (0, 0x05): Drive.create_cq,
    (0, 0x01): Drive.create_sq,
    (1, 0x05): Drive.compare,
}


class ExpiredError(Exception):
    """An operation waits for what never comes; its text is what the guest's program prints."""


@dataclass
class Program:
    """The guest's program `hil`, with a drive in the place of the file or device."""

    drive: Drive
    read: list[int] = field(default_factory=list)
    place: str = "bar0"

    def run(self, ops: Sequence[str]) -> None:
        """Perform operations on the drive as it is after a reset."""
        self.drive.reset()
        self.run_on(ops)

    def run_on(self, ops: Sequence[str]) -> None:
        """Perform operations on the drive as it is."""
        first = 0
        for index, op in enumerate(ops):
            if op == "start":
                first = index
            if op.startswith("repeat:"):
                for _ in range(int(op[7:]) - 1):
                    for again in ops[first:index]:
                        self.perform(again)
            else:
                self.perform(op)

    def perform(self, op: str) -> None:
        verb, _, rest = op.partition(":")
        numbers = [int(word, 0) for word in re.findall(r"0x[0-9a-f]+|\d+", rest.partition("@")[0])]
        match verb:
            case "in":
                self.place = rest
            case "w32" | "w64":
                self._store(numbers[0], int(verb[1:]) // 8, numbers[1])
            case "r32" | "r64":
                self.read.append(self._load(numbers[0], int(verb[1:]) // 8))
            case "series" | "series32":
                at, stride, count, value, step = numbers
                for i in range(count):
                    width = 4 if verb == "series32" else 8
                    self._store(at + i * stride, width, value + i * step)
            case "add":
                at, stride, count, step = numbers
                for i in range(count):
                    value = self._load(at + i * stride, 8) + step
                    self._store(at + i * stride, 8, value & (1 << 64) - 1)
            case "until32" | "try32":
                at, mask, value = numbers
                if self._load(at, 4) & mask == value:
                    return
                self.drive.work()
                if self._load(at, 4) & mask != value and verb == "until32":
                    raise ExpiredError(f"hil: {op}: waited 1 s … at {at:#x} of {self.place}; …")
            case "map":
                iova, offset, length = numbers
                self.drive.maps.append((iova, offset, length))
            case _:
                assert verb in ("start", "pause"), op

    def _store(self, at: int, width: int, value: int) -> None:
        if self.place == "bar0":
            self.drive.write(at, value)
        else:
            self.drive.check_store(at)
            self.drive.memory[at : at + width] = value.to_bytes(width, "little")

    def _load(self, at: int, width: int) -> int:
        if self.place == "bar0":
            return self.drive.read(at)
        return int.from_bytes(self.drive.memory[at : at + width], "little")


class GuestWithDrive:
    """A guest that runs the programs of an NVMe source on a drive."""

    name = "g0"

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        self.programs = 0
        #: The time limit of the last program.
        self.timeout = 0.0

    def run(
        self, command: str, *, timeout: float = 0, check: bool = True, what: str = ""
    ) -> Output:
        """Run a program; any other command is that which lends the drive."""
        words = shlex.split(command)
        if words[:2] != ["hil", "vfio"]:
            return Output(command, 0, f"{self.drive.cap:#x}\n".encode())
        self.programs += 1
        self.timeout = timeout
        self.drive.memory, self.drive.maps = bytearray(int(words[3], 0)), []
        program = Program(self.drive)
        try:
            program.run(words[4:])
        except ExpiredError as expired:
            return Output(command, 1, str(expired).encode())
        return Output(command, 0, "".join(f"{word:#x}\n" for word in program.read).encode())
