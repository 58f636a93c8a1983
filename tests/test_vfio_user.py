"""The vfio-user server serves clients that follow the protocol, and survives those that do not."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.virtual.silicon import vfio_user
from harness.virtual.silicon.memory import AccessError, Memory
from harness.virtual.silicon.messages import (
    FrameError,
    Message,
    MessageType,
    RefusedError,
    parse_header,
)
from harness.virtual.silicon.vfio_user import Endpoint, PciIdentity

HEADER = struct.Struct("<HHIII")
BAR, CONFIG = 0, 7
IDENTITY = PciIdentity(0x10DE, 0x241C, 0x088000, 0x10000)


class Recorder:
    """Registers that keep what is written to them."""

    def __init__(self) -> None:
        self.values: dict[int, int] = {}
        self.resets = 0

    def read(self, offset: int, size: int) -> int:
        return self.values.get(offset, 0) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.values[offset] = value

    def reset(self) -> None:
        self.resets += 1


class Client:
    """QEMU's side of a vfio-user connection."""

    def __init__(self, sock: socket.socket, registers: Recorder, memory: Memory) -> None:
        self.sock, self.registers, self.memory = sock, registers, memory
        self._id = 0

    def send(self, command: int, body: bytes, descriptors: tuple[int, ...] = ()) -> None:
        self._id += 1
        frame = HEADER.pack(self._id, command, HEADER.size + len(body), 0, 0) + body
        socket.send_fds(self.sock, [frame], list(descriptors))

    def reply(self) -> tuple[int, bytes]:
        """Receive a reply, and return its error number and its body."""
        head = self.sock.recv(HEADER.size, socket.MSG_WAITALL)
        assert head, "the server hung up"
        identity, _, size, flags, error = HEADER.unpack(head)
        assert identity == self._id
        assert flags == 1 | (0x20 if error else 0)
        body = self.sock.recv(size - HEADER.size, socket.MSG_WAITALL) if size > 16 else b""
        return error, body

    def ask(self, command: int, body: bytes, *descriptors: int) -> tuple[int, bytes]:
        self.send(command, body, descriptors)
        return self.reply()

    def agree(self) -> dict[str, object]:
        error, body = self.ask(MessageType.VERSION, struct.pack("<HH", 0, 3) + b'{"a": 1}\0')
        assert error == 0
        assert struct.unpack_from("<HH", body) == (0, 1)
        capabilities: dict[str, object] = json.loads(body[4:].rstrip(b"\0"))["capabilities"]
        return capabilities


@contextlib.contextmanager
def connected() -> Iterator[Client]:
    theirs, ours = socket.socketpair()
    for end in (theirs, ours):
        end.settimeout(10)
    registers, memory = Recorder(), Memory()
    endpoint = Endpoint(IDENTITY, registers, memory)
    problems: list[BaseException] = []

    def serve() -> None:
        try:
            vfio_user.serve(theirs, endpoint, lambda _: None)
        except FrameError:
            pass
        except BaseException as problem:
            problems.append(problem)
        finally:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours:
            yield Client(ours, registers, memory)
    finally:
        thread.join(10)
        assert not thread.is_alive(), "the server hangs"
        assert not problems, problems


@pytest.fixture
def client() -> Iterator[Client]:
    with connected() as made:
        made.agree()
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "memory"
    path.write_bytes(bytes(range(256)) * 32)  # two pages
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def access(offset: int, region: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<QII", offset, region, count) + data


def dma_map(address: int, size: int, offset: int = 0, flags: int = 3) -> bytes:
    return struct.pack("<IIQQQ", 32, flags, offset, address, size)


def dma_unmap(address: int, size: int, flags: int = 0) -> bytes:
    return struct.pack("<IIQQ", 24, flags, address, size)


def test_a_version_comes_first() -> None:
    with connected() as client:
        assert client.ask(MessageType.DEVICE_GET_INFO, bytes(16))[0] == errno.EPROTO
        assert client.agree()["max_msg_fds"] == 8
        assert client.ask(MessageType.VERSION, struct.pack("<HH", 0, 1))[0] == errno.EPROTO


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (struct.pack("<HH", 1, 0), errno.ENOTSUP),
        (b"\0", errno.EINVAL),
        (struct.pack("<HH", 0, 1) + b"{]\0", errno.EINVAL),
        (struct.pack("<HH", 0, 1) + b"[1]\0", errno.EINVAL),
        (struct.pack("<HH", 0, 1) + b"[" * 100_000, errno.EINVAL),
    ],
)
def test_versions_that_cannot_be(body: bytes, error: int) -> None:
    with connected() as client:
        assert client.ask(MessageType.VERSION, body)[0] == error
        client.agree()


def test_the_device_describes_itself(client: Client) -> None:
    error, info = client.ask(MessageType.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    assert (error, struct.unpack("<IIII", info)) == (0, (16, 3, 9, 5))
    for region, size in ((BAR, IDENTITY.bar_bytes), (CONFIG, 256), (1, 0), (8, 0)):
        query = struct.pack("<IIIIQQ", 32, 0, region, 0, 0, 0)
        error, info = client.ask(MessageType.DEVICE_GET_REGION_INFO, query)
        fields = struct.unpack("<IIIIQQ", info)
        assert (error, fields[1], fields[4]) == (0, 3 if size else 0, size)
    beyond = struct.pack("<IIIIQQ", 32, 0, 9, 0, 0, 0)
    assert client.ask(MessageType.DEVICE_GET_REGION_INFO, beyond)[0] == errno.EINVAL
    assert client.ask(MessageType.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 5, 0))[0] == 22
    error, info = client.ask(MessageType.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    assert (error, struct.unpack("<IIII", info)[3]) == (0, 0)
    assert client.ask(MessageType.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 33, 0, 0, 0)) == (
        0,
        b"",
    )
    assert client.ask(99, b"")[0] == errno.ENOTSUP


def test_registers_are_read_and_written(client: Client) -> None:
    write = access(0x1000, BAR, 4, struct.pack("<I", 0xABCD))
    assert client.ask(MessageType.REGION_WRITE, write) == (0, access(0x1000, BAR, 4))
    assert client.registers.values == {0x1000: 0xABCD}
    error, body = client.ask(MessageType.REGION_READ, access(0x1000, BAR, 4))
    assert (error, body[16:]) == (0, struct.pack("<I", 0xABCD))
    assert client.ask(MessageType.DEVICE_RESET, b"") == (0, b"")
    assert client.registers.resets == 1


@pytest.mark.parametrize(
    "body",
    [
        access(IDENTITY.bar_bytes, BAR, 4),
        access(IDENTITY.bar_bytes - 2, BAR, 4),
        access(2, BAR, 4),
        access(0, BAR, 3),
        access(0, BAR, 0),
        access(0, 1, 4),
        access(1 << 63, BAR, 4),
        access(0, 99, 4),
        access(254, CONFIG, 4),
        access(0, CONFIG, 1 << 31),
        b"",
    ],
)
def test_accesses_that_cannot_be(client: Client, body: bytes) -> None:
    assert client.ask(MessageType.REGION_READ, body)[0] == errno.EINVAL
    assert client.ask(MessageType.REGION_WRITE, body)[0] == errno.EINVAL
    assert client.registers.values == {}


def test_a_write_has_the_data_that_it_says(client: Client) -> None:
    assert client.ask(MessageType.REGION_WRITE, access(0, BAR, 4, b"\0" * 5))[0] == errno.EINVAL


def test_configuration_space_is_a_pci_functions(client: Client) -> None:
    def config(offset: int, size: int) -> int:
        error, body = client.ask(MessageType.REGION_READ, access(offset, CONFIG, size))
        assert error == 0
        return int.from_bytes(body[16:], "little")

    assert config(0, 4) == 0x241C10DE
    assert config(9, 3) == 0x088000
    for offset, value in ((0, 0xFFFF_FFFF), (4, 0xFFFF), (0x10, 0xFFFF_FFFF), (0x2C, 0x1234)):
        data = value.to_bytes(4, "little")
        assert client.ask(MessageType.REGION_WRITE, access(offset, CONFIG, 4, data))[0] == 0
    assert config(0, 4) == 0x241C10DE
    assert config(4, 2) == 0x0406
    assert config(0x10, 4) == 0xFFFF_FFFF & ~(IDENTITY.bar_bytes - 1), "the BAR's size"
    assert config(0x2C, 4) == 0


def test_memory_is_the_files(client: Client, file: int) -> None:
    address = 0x4000_0000
    assert client.ask(MessageType.DMA_MAP, dma_map(address, 4096, 4096), file) == (0, b"")
    assert client.memory.read(address + 1, 3) == b"\1\2\3"
    client.memory.write(address, b"here")
    assert os.pread(file, 4, 4096) == b"here"
    with pytest.raises(AccessError):
        client.memory.read(address + 4094, 3)
    assert client.ask(MessageType.DMA_UNMAP, dma_unmap(address, 4096))[0] == 0
    with pytest.raises(AccessError):
        client.memory.read(address, 1)


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Return memory whose one region is all of a file of two pages."""
    made = Memory()
    yield made
    made.clear()


def test_a_file_that_becomes_shorter_is_an_error_and_no_signal(memory: Memory) -> None:
    file = os.memfd_create("memory")
    os.ftruncate(file, 8192)
    memory.add(0x1000, 8192, file, 0, writable=True)
    assert memory.read(0x1000 + 4094, 4) == bytes(4)
    os.ftruncate(file, 4096)
    for address in (0x2000, 0x1000 + 4094):
        with pytest.raises(AccessError, match="shorter"):
            memory.read(address, 4)
        with pytest.raises(AccessError, match="shorter"):
            memory.write(address, b"here")
    assert os.fstat(file).st_size == 4096
    os.close(file)
    assert memory.read(0x1000, 4) == bytes(4), "the memory has a descriptor of its own"


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize(
    "flags", [os.O_PATH, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_RDONLY, os.O_RDWR]
)
def test_only_a_file_that_can_be_accessed_as_asked_is_memory(
    memory: Memory, tmp_path: Path, flags: int, writable: bool
) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(4096))
    file = os.open(path, flags)
    readable = flags not in (os.O_PATH, os.O_WRONLY)
    if readable and (flags == os.O_RDWR or not writable):
        memory.add(0, 4096, file, 0, writable)
        assert memory.read(0, 1) == b"\0"
        with contextlib.nullcontext() if writable else pytest.raises(AccessError):
            memory.write(1, b"x")
    else:
        with pytest.raises(RefusedError, match="DMA region"):
            memory.add(0, 4096, file, 0, writable)
    os.close(file)


def test_a_directory_or_a_pipe_is_no_memory(memory: Memory, tmp_path: Path) -> None:
    files = [os.open(tmp_path, os.O_RDONLY), *os.pipe(), os.open("/dev/zero", os.O_RDWR)]
    for file in files:
        with pytest.raises(RefusedError, match="something else than a file"):
            memory.add(0, 4096, file, 0, False)
        os.close(file)


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Have Python change threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_threads")
def test_regions_come_and_go_while_memory_is_read(memory: Memory, file: int) -> None:
    for number in range(100):
        memory.add((number << 20) + (1 << 30), 4096, None, 0, writable=False)
    memory.add(1 << 40, 4096, file, 0, writable=False)
    ended, problems = threading.Event(), list[Exception]()

    def read() -> None:
        try:
            while not ended.is_set():
                assert memory.read((1 << 40) + 1, 2) == b"\1\2"
                with contextlib.suppress(AccessError):
                    memory.read(0x3000, 4)
        except Exception as problem:
            problems.append(problem)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(200):
            for number in range(10):
                memory.add(number * 4096, 4096, file, 0, writable=False)
            for number in range(10):
                memory.remove(number * 4096, 4096)
    finally:
        ended.set()
        reader.join()
    assert problems == []


def test_memory_may_be_read_only_or_out_of_reach(client: Client, file: int) -> None:
    assert client.ask(MessageType.DMA_MAP, dma_map(0, 4096, flags=1), file)[0] == 0
    with pytest.raises(AccessError):
        client.memory.write(0, b"x")
    assert client.ask(MessageType.DMA_MAP, dma_map(0x10000, 4096))[0] == 0
    with pytest.raises(AccessError):
        client.memory.read(0x10000, 1)
    assert client.ask(MessageType.DMA_UNMAP, dma_unmap(0, 0, flags=2))[0] == 0
    with pytest.raises(AccessError):
        client.memory.read(0, 1)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (dma_map(0, 0), errno.EINVAL),
        (dma_map(1, 4096), errno.EINVAL),
        (dma_map(0, 4097), errno.EINVAL),
        (dma_map(0, 4096, 1), errno.EINVAL),
        (dma_map(0, 4096, 1 << 20), errno.EINVAL),
        (dma_map(1 << 41, 1 << 40), errno.EINVAL),
        (dma_map((1 << 64) - 4096, 8192), errno.EINVAL),
        (dma_map(0, 4096, flags=0), errno.EINVAL),
        (dma_map(0, 4096, flags=7), errno.EINVAL),
        (dma_map(0x8000_0000, 8192), errno.EEXIST),
        (b"\0" * 31, errno.EINVAL),
    ],
)
def test_memory_that_cannot_be(client: Client, file: int, body: bytes, error: int) -> None:
    assert client.ask(MessageType.DMA_MAP, dma_map(0x8000_1000, 4096), file)[0] == 0
    assert client.ask(MessageType.DMA_MAP, body, file)[0] == error
    assert client.ask(MessageType.DMA_MAP, dma_map(0, 4096), file, file)[0] == errno.EINVAL
    assert client.ask(MessageType.DMA_UNMAP, dma_unmap(0x8000_1000, 8192))[0] == errno.ENOENT
    assert client.ask(MessageType.DMA_UNMAP, dma_unmap(0x8000_1000, 4096, 1))[0] == errno.ENOTSUP


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_descriptors_are_not_kept(client: Client, file: int) -> None:
    before = open_descriptors()
    for _ in range(50):
        client.ask(MessageType.DMA_MAP, dma_map(0, 4096), file)
        client.ask(MessageType.DMA_UNMAP, dma_unmap(0, 4096))
        client.ask(MessageType.DEVICE_RESET, b"", file, file, file)
    assert open_descriptors() <= before + 1


@pytest.mark.parametrize(
    "frame",
    [
        HEADER.pack(1, 5, 15, 0, 0),
        HEADER.pack(1, 5, 0xFFFF_FFFF, 0, 0),
        HEADER.pack(1, 5, 16, 1, 0),
        HEADER.pack(1, 5, 32, 0, 0) + b"half",
        b"\0" * 7,
    ],
)
def test_a_frame_that_is_none_ends_the_connection(frame: bytes) -> None:
    with connected() as client:
        client.agree()
        client.sock.sendall(frame)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.sock.recv(1) == b""


def test_descriptors_beside_pieces_of_a_message_are_counted_together(file: int) -> None:
    before = open_descriptors()
    with connected() as client:
        client.agree()
        frame = HEADER.pack(1, MessageType.DEVICE_RESET, HEADER.size, 0, 0)
        with contextlib.suppress(ConnectionError):  # the server may have closed it already
            for byte in frame:
                socket.send_fds(client.sock, [bytes([byte])], [file, file])
        with contextlib.suppress(ConnectionError):
            assert client.sock.recv(1) == b""
    assert open_descriptors() == before


def test_a_client_may_hang_up_before_it_has_its_answers() -> None:
    with connected() as client:
        client.agree()
        for _ in range(100):
            client.send(MessageType.DEVICE_GET_INFO, bytes(16))


def test_a_message_may_want_no_reply(client: Client) -> None:
    body = access(0, BAR, 4, b"\1\0\0\0")
    client.sock.sendall(HEADER.pack(7, MessageType.REGION_WRITE, 16 + len(body), 0x10, 0) + body)
    error, read = client.ask(MessageType.REGION_READ, access(0, BAR, 4))
    assert (error, read[16:]) == (0, b"\1\0\0\0")


# -- nonsense --------------------------------------------------------------------------------

CAPTURED = [
    (MessageType.VERSION, struct.pack("<HH", 0, 1) + b'{"capabilities":{"max_msg_fds":8}}\0'),
    (MessageType.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)),
    (MessageType.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0)),
    (MessageType.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 1, 0)),
    (MessageType.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 33, 0, 0, 0)),
    (MessageType.DMA_MAP, dma_map(0x4000_0000, 4096)),
    (MessageType.DMA_UNMAP, dma_unmap(0x4000_0000, 4096)),
    (MessageType.REGION_READ, access(0x1000, BAR, 4)),
    (MessageType.REGION_WRITE, access(0x1000, BAR, 8, bytes(8))),
    (MessageType.REGION_WRITE, access(0x10, CONFIG, 4, bytes(4))),
    (MessageType.DEVICE_RESET, b""),
]


@given(
    agreed=st.booleans(),
    command=st.one_of(st.sampled_from(list(MessageType)), st.integers(0, 0xFFFF)),
    body=st.binary(max_size=80),
)
def test_no_content_does_more_than_be_refused(agreed: bool, command: int, body: bytes) -> None:
    endpoint = Endpoint(IDENTITY, Recorder(), Memory())
    if agreed:
        endpoint.answer(Message(0, MessageType.VERSION, struct.pack("<HH", 0, 1), True, []))
    with contextlib.suppress(RefusedError):
        assert isinstance(endpoint.answer(Message(1, int(command), body, True, [])), bytes)


@given(st.binary(min_size=16, max_size=16))
def test_no_header_does_more_than_end_the_connection(data: bytes) -> None:
    with contextlib.suppress(FrameError):
        _, _, size, _ = parse_header(data)
        assert 0 <= size <= (1 << 20) + 16


@settings(max_examples=60)
@given(data=st.data())
def test_mutated_captures_neither_crash_nor_hang_the_server(data: st.DataObject) -> None:
    stream = bytearray()
    for number, (command, body) in enumerate(CAPTURED):
        stream += HEADER.pack(number, command, HEADER.size + len(body), 0, 0) + body
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(stream) - 1))
        what = data.draw(st.sampled_from(["flip", "drop", "double", "cut"]))
        if what == "flip":
            stream[at] ^= 1 << data.draw(st.integers(0, 7))
        elif what == "drop":
            del stream[at : at + data.draw(st.integers(1, 20))]
        elif what == "double":
            stream[at:at] = stream[at : at + data.draw(st.integers(1, 40))]
        else:
            del stream[at + 1 :]
        if not stream:
            break
    with connected() as client:
        with contextlib.suppress(ConnectionError):  # the server may have closed it already
            client.sock.sendall(stream)
            client.sock.shutdown(socket.SHUT_WR)
            while client.sock.recv(1 << 16):
                pass


def test_mappings_are_given_back_at_the_end(file: int) -> None:
    with connected() as client:
        client.agree()
        client.ask(MessageType.DMA_MAP, dma_map(0, 8192), file)
        memory = client.memory
        assert memory.read(0, 1) == b"\0"
    with pytest.raises(AccessError):
        memory.read(0, 1)
