"""Send random streams of messages, with descriptors beside them, to the server of vfio-user, with
the model of the CMDQV behind it.

    python -m tests.fuzz.vfio_user --messages 1000000
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import socket
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.smmu.cmdqv import (
    ENABLE,
    KIB64,
    VCMDQ_PAGE0,
    VCMDQ_PAGE1,
    VCMDQ_STRIDE,
    VINTF_PAGES,
    VINTF_STRIDE,
    Config,
    Page0,
    Page1,
    QueueError,
    VintfRegister,
)
from harness.smmu.commands import COMMAND_BYTES, Opcode, encode
from harness.virtual.silicon import vfio_user
from harness.virtual.silicon.memory import PAGE
from harness.virtual.silicon.messages import (
    MAX_TRANSFER,
    FrameError,
    Message,
    MessageType,
    RefusedError,
)
from harness.virtual.silicon.process import ModelProcess, identity
from harness.virtual.silicon.registers import Parameters, Vcmdq
from harness.virtual.silicon.smmu_commands import SmmuCommands
from harness.virtual.silicon.vfio_user import Endpoint
from tests.fuzz.campaign import Stream, main

_HEADER = struct.Struct("<HHIII")
_NOWHERE = Path("/nonexistent/socket")
_PAGES = 16
_RAM = 0x4000_0000
_BAR, _CONFIG = 0, 7

_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 255, 256, PAGE, MAX_TRANSFER, 1 << 31, _U32, 1 << 63, _U64)
_ADDRESSES = (0, _RAM, _RAM + PAGE, _RAM + 4 * PAGE, 1 << 40, 1 << 63, (1 << 64) - PAGE, 1, _U64)

Frame = tuple[bytes, list[int]]


def _registers() -> list[int]:
    """Return the offsets of all registers of the first interfaces and queues, and some others."""
    of_vintf = [*VintfRegister, VintfRegister.SID_MATCH + 4, VintfRegister.SID_REPLACE + 4]
    offsets = [*map(int, Config), Config.CMDQ_ALLOC + 4, Config.CMDQ_ALLOC + 8]
    offsets += [Config.VINTF + n * VINTF_STRIDE + one for n in (0, 1, 4) for one in of_vintf]
    for number in (0, 1, 9):
        for first in (VCMDQ_PAGE0, VINTF_PAGES, VINTF_PAGES + 2 * KIB64):
            offsets += [first + number * VCMDQ_STRIDE + one for one in Page0]
        for first in (VCMDQ_PAGE1, VINTF_PAGES + KIB64, VINTF_PAGES + 3 * KIB64):
            offsets += [first + number * VCMDQ_STRIDE + one for one in Page1]
    return offsets


_REGISTERS = _registers()


class SmmuOff:
    """QEMU's qtest, with an SMMU that is off: what it is told is in the scratch queue only."""

    def at_once(self, *commands: str) -> list[int]:
        return [0 for command in commands if command.startswith("read")]

    def pulse(self, controller: str, interrupt: int) -> None:
        pass


class Device:
    """The registers of a model whose commands are carried out when a register has been written, and
    whose memory may become shorter then."""

    def __init__(self, stream: Stream, memory: int) -> None:
        self.silicon = ModelProcess(Parameters(), _NOWHERE, _NOWHERE, 0, 200)
        qtest = SmmuOff()
        self.silicon._qtest = qtest  # type: ignore[assignment]
        self.silicon._interrupt_controller = ""
        self.silicon._smmu_commands = SmmuCommands(qtest, 0, self.silicon.model.memory)  # type: ignore[arg-type]
        self._random, self._memory = stream.random, memory
        self.read, self.reset = self.silicon.model.read, self.silicon.model.reset

    def write(self, offset: int, size: int, value: int) -> None:
        self.silicon.model.write(offset, size, value)
        chance = self._random.random()
        if chance < 0.01:
            os.ftruncate(self._memory, self._random.randrange(_PAGES) * PAGE)
        elif chance < 0.02:
            with contextlib.suppress(LookupError):
                self.silicon.model.inject(1, 0, self._random.choice(list(QueueError)[1:]))
        with contextlib.suppress(queue.Empty):
            while True:
                waiting = self.silicon._work.get_nowait()
                assert isinstance(waiting, Vcmdq)
                self.silicon.model.process(waiting)


class CountedEndpoint(Endpoint):
    """An endpoint that counts in `stream` what it answers."""

    def __init__(self, stream: Stream, device: Device) -> None:
        super().__init__(identity(Parameters()), device, device.silicon.memory)
        self._stream = stream

    def answer(self, message: Message) -> bytes:
        self._stream.messages += 1
        try:
            body = super().answer(message)
        except RefusedError:
            self._stream.refused += 1
            raise
        self._stream.served += 1
        return body


class Files:
    """The files whose descriptors a client may send, by their names."""

    def __init__(self) -> None:
        self.memory = os.memfd_create("memory")
        os.ftruncate(self.memory, _PAGES * PAGE)
        folder = tempfile.gettempdir()
        self.by_name = {
            "memory": self.memory,
            "read-only": os.open(f"/proc/self/fd/{self.memory}", os.O_RDONLY),
            "path": os.open(f"/proc/self/fd/{self.memory}", os.O_PATH),
            "short": os.memfd_create("short"),
            "folder": os.open(folder, os.O_RDONLY),
            "zero": os.open("/dev/zero", os.O_RDWR),
            "event": os.eventfd(0),
        }
        self.by_name["pipe"], self.by_name["pipe's end"] = os.pipe()
        self.names = {number: name for name, number in self.by_name.items()}
        self.numbers = list(self.names)

    def restore(self, commands: bytes) -> None:
        """Make the memory as long as it was, and full of commands."""
        os.ftruncate(self.memory, 0)
        os.ftruncate(self.memory, _PAGES * PAGE)
        os.pwrite(self.memory, commands, 0)


# -- messages --------------------------------------------------------------------------------


class Messages:
    """A source of frames."""

    def __init__(self, chance: random.Random, files: Files) -> None:
        self._random, self._files = chance, files
        self._kinds: list[tuple[Callable[[], Frame], int]] = [
            (self._version, 1),
            (self._dma_map, 4),
            (self._dma_unmap, 2),
            (self._query, 3),
            (self._register, 14),
            (self._config, 2),
            (self._reset, 1),
            (self._anything, 2),
        ]
        self._weights = [weight for _, weight in self._kinds]

    def stream(self) -> list[Frame]:
        """Return the frames of one stream."""
        frames: list[Frame] = []
        if self._random.random() < 0.95:
            frames.append(_frame(MessageType.VERSION, struct.pack("<HH", 0, 1)))
        if self._random.random() < 0.7:
            frames += self._running_queue()
        kinds = self._random.choices(
            self._kinds, weights=self._weights, k=self._random.randint(1, 10)
        )
        frames += [make() for make, _ in kinds]
        if self._random.random() < 0.3:
            frames = [self._mutated(frame) for frame in frames]
        return frames

    def commands(self) -> bytes:
        """Return commands for a queue: most are such as a guest may give."""
        taken = {Opcode.TLBI_NH_ASID: 9, Opcode.TLBI_NH_VA: 9, Opcode.ATC_INV: 9, Opcode.SYNC: 30}
        chosen = self._random.choices((*taken, 0xFF), (*taken.values(), 1), k=64)
        chance = [(kind | self._random.getrandbits(56) << 8, 0) for kind in chosen]
        return encode(chance)

    def _running_queue(self) -> list[Frame]:
        """Return what brings a queue of VINTF 1 into operation."""
        log2size = self._random.choice((0, 1, 2, 3, 3, 3, 6, 8, 8, 19, 31))
        scratch = _RAM + 8 * PAGE
        return [
            (_frame(MessageType.DMA_MAP, _dma_map(_RAM, _PAGES * PAGE))[0], [self._files.memory]),
            _write(Config.CONFIG, ENABLE),
            _write(Config.VINTF + VINTF_STRIDE, ENABLE),
            _write(Config.CMDQ_ALLOC + 4, 1 << 15 | 1),
            _write(VCMDQ_PAGE1 + Page1.BASE, scratch | 3, 8),
            _write(VCMDQ_PAGE1 + VCMDQ_STRIDE + Page1.BASE, _RAM | log2size, 8),
            _write(VCMDQ_PAGE0 + VCMDQ_STRIDE + Page0.CONFIG, ENABLE),
            _write(VCMDQ_PAGE0 + VCMDQ_STRIDE + Page0.PROD, self._random.randrange(12)),
        ]

    def _some(self, known: Sequence[int], bits: int) -> int:
        chance = self._random.random()
        if chance < 0.7:
            return self._random.choice(known) & (1 << bits) - 1
        if chance < 0.8:
            return self._random.choice(known) + self._random.randint(-8, 8) & (1 << bits) - 1
        return self._random.getrandbits(bits)

    def _descriptors(self) -> list[int]:
        chance = self._random.random()
        if chance < 0.6:
            return [self._files.memory]
        count = 0 if chance < 0.75 else 1 if chance < 0.9 else self._random.randint(2, 12)
        return self._random.choices(self._files.numbers, k=count)

    def _version(self) -> Frame:
        text = self._random.choice((b"", b"{}\0", b"{", b"[1]\0", b"[" * 5000, b"\xff\xfe\0", b"1"))
        numbers = struct.pack("<HH", self._random.choice((0, 0, 0, 1)), self._some((0, 1), 16))
        return _frame(MessageType.VERSION, numbers + text)

    def _dma_map(self) -> Frame:
        body = struct.pack(
            "<IIQQQ",
            self._some((32, 0), 32),
            self._some((3, 3, 3, 1, 2, 0), 32),
            self._some((0, 0, PAGE, 3 * PAGE, (1 << 63) - PAGE), 64),
            self._some(_ADDRESSES, 64),
            self._some((PAGE, PAGE, 2 * PAGE, _PAGES * PAGE, 0, 1 << 40, 1 << 63), 64),
        )
        return _frame(MessageType.DMA_MAP, body, self._descriptors())

    def _dma_unmap(self) -> Frame:
        flags, address = self._some((0, 0, 0, 1, 2), 32), self._some(_ADDRESSES, 64)
        size = self._some((PAGE, _PAGES * PAGE, 2 * PAGE, 0), 64)
        return _frame(MessageType.DMA_UNMAP, struct.pack("<IIQQ", 24, flags, address, size))

    def _query(self) -> Frame:
        command = self._random.choice(
            (
                MessageType.DEVICE_GET_INFO,
                MessageType.DEVICE_GET_REGION_INFO,
                MessageType.DEVICE_GET_IRQ_INFO,
                MessageType.DEVICE_SET_IRQS,
                MessageType.DEVICE_GET_REGION_IO_FDS,
            )
        )
        words = [self._some(_NUMBERS, 32) for _ in range(self._random.choice((3, 4, 5, 8, 8)))]
        descriptors = self._descriptors() if self._random.random() < 0.1 else []
        return _frame(command, struct.pack(f"<{len(words)}I", *words), descriptors)

    def _register(self) -> Frame:
        offset = self._some(_REGISTERS, 20)
        size = self._random.choice((4, 4, 4, 8))
        if self._random.random() < 0.05:
            size = self._some((0, 1, 2, 3, 16), 32)
        if self._random.random() < 0.4:
            return _frame(MessageType.REGION_READ, struct.pack("<QII", offset, _BAR, size))
        value = self._some((*_NUMBERS, *_ADDRESSES, 0x8001, 0x10003, _RAM | 3, _RAM | 31), 64)
        return _write(offset, value, size if size <= 16 else 4)

    def _config(self) -> Frame:
        region = self._some((_CONFIG, _CONFIG, _CONFIG, 1, 8, 9), 32)
        offset, size = self._some((0, 4, 0x10, 252, 256), 64), self._some((1, 2, 4, 8, 256), 32)
        body = struct.pack("<QII", offset, region, size)
        if self._random.random() < 0.5:
            return _frame(MessageType.REGION_READ, body)
        return _frame(MessageType.REGION_WRITE, body + bytes(min(size, 300)))

    def _reset(self) -> Frame:
        return _frame(MessageType.DEVICE_RESET, b"")

    def _anything(self) -> Frame:
        body = self._random.randbytes(self._random.choice((0, 1, 7, 16, 32, 60, 5000)))
        return _frame(self._some((*MessageType, 11, 12, 14), 16), body, self._descriptors())

    def _mutated(self, frame: Frame) -> Frame:
        if self._random.random() < 0.7:
            return frame
        data, descriptors = bytearray(frame[0]), frame[1]
        at = self._random.randrange(len(data))
        what = self._random.randrange(6)
        if what == 0:
            data[at] ^= 1 << self._random.randrange(8)
        elif what == 1:
            data[at] = self._random.choice((0, 0xFF))
        elif what == 2:
            del data[at : at + self._random.randint(1, 20)]
        elif what == 3:
            data[at:at] = data[at : at + self._random.randint(1, 40)]
        elif what == 4:
            del data[at:]
        else:
            descriptors = self._random.choices(self._files.numbers, k=self._random.randint(1, 12))
        return bytes(data), descriptors


def _frame(command: int, body: bytes, descriptors: Sequence[int] = ()) -> Frame:
    header = _HEADER.pack(command, command, _HEADER.size + len(body), 0, 0)
    return header + body, list(descriptors)


def _dma_map(address: int, size: int) -> bytes:
    return struct.pack("<IIQQQ", 32, 3, 0, address, size)


def _write(offset: int, value: int, size: int = 4) -> Frame:
    data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return _frame(MessageType.REGION_WRITE, struct.pack("<QII", offset, _BAR, size) + data)


# -- a stream --------------------------------------------------------------------------------


class VfioUser:
    """The target: each stream has a server and a model of its own."""

    def __init__(self) -> None:
        self._files = Files()

    def __call__(self, stream: Stream) -> None:
        source = Messages(stream.random, self._files)
        self._files.restore(source.commands() * (PAGE // COMMAND_BYTES // 64))
        theirs, ours = socket.socketpair()
        with ours, theirs:
            for end in (ours, theirs):
                end.settimeout(1)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            for data, descriptors in source.stream():
                names = [self._files.names[one] for one in descriptors]
                stream.sent.append(f"{data.hex()} {names or ''}")
                if data:
                    socket.send_fds(ours, [data], descriptors)
            ours.shutdown(socket.SHUT_WR)
            endpoint = CountedEndpoint(stream, Device(stream, self._files.memory))
            try:
                vfio_user.serve(theirs, endpoint, lambda text: None)
            except FrameError:
                stream.messages += 1
            theirs.shutdown(socket.SHUT_WR)
            _check_replies(ours)


def _check_replies(ours: socket.socket) -> None:
    """Raise AssertionError if what the server has sent is not a sequence of replies."""
    data = bytearray()
    while chunk := ours.recv(1 << 16):
        data += chunk
    while data:
        _, _, size, flags, error = _HEADER.unpack_from(data)
        assert flags == (0x21 if error else 1), f"a reply with flags {flags:#x}, error {error}"
        assert _HEADER.size <= size <= len(data), f"a reply of {size} bytes, {len(data)} are there"
        del data[:size]


if __name__ == "__main__":
    main("vfio-user", VfioUser())
