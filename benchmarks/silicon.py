"""Measure the silicon model alone: reads of a register, ten million commands. Needs no lab."""

from __future__ import annotations

import os
import resource
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Sequence

from benchmarks.runner.figure import Benchmark, Better, Figure, Samples
from benchmarks.runner.program import alone
from harness.smmu.cmdqv import (
    ENABLE,
    VCMDQ_PAGE0,
    VCMDQ_PAGE1,
    VINTF_STRIDE,
    Config,
    Page0,
    Page1,
)
from harness.smmu.commands import Command, Opcode, encode
from harness.virtual.silicon import messages, vfio_user
from harness.virtual.silicon.memory import PAGE, Memory
from harness.virtual.silicon.model import Cmdqv
from harness.virtual.silicon.process import QueueMemory, identity
from harness.virtual.silicon.registers import Parameters, Vcmdq
from harness.virtual.silicon.vfio_user import Endpoint

READ = Figure("register-read", "a read of a register through a socket, as QEMU reads", "us", 100)
COMMANDS = Figure("commands", "commands that the model carries out", "/s", better=Better.LARGER)
GROWTH = Figure(
    "commands-growth",
    "memory that it has taken more after ten million commands",
    "KiB",
    limit=1024,
    compared=False,
)
_COMMANDS, _READS = 10_000_000, 20_000


def measure(share: float) -> Samples:
    """Yield the figures of the model, which has no machine around it."""
    yield READ, register_read(max(1000, int(_READS * share)))
    yield from measure_commands(int(_COMMANDS * share))


class Nobody:
    """Surroundings of the model without a machine. They only count the commands."""

    def __init__(self) -> None:
        self.done = 0

    def doorbell(self, queue: Vcmdq) -> None:
        pass

    def invalidate(self, commands: Sequence[Command]) -> None:
        pass

    def carried_out(
        self, queue: Vcmdq, commands: Sequence[Command], issued: Sequence[Command | None]
    ) -> None:
        self.done += len(commands)

    def interrupt(self) -> None:
        raise AssertionError("an error without a cause")


def queue_memory(entries: int) -> QueueMemory:
    """Return memory at address 0, in a file as QEMU's is, with a queue that always has the same
    commands."""
    commands = [(Opcode.TLBI_NH_VA, 0x1000), (Opcode.SYNC, 0)] * (entries // 2)
    data = encode(commands)
    memory = Memory()
    file = os.memfd_create("queue")
    os.pwrite(file, data, 0)
    os.ftruncate(file, -(-len(data) // PAGE) * PAGE)
    memory.add(0, os.fstat(file).st_size, file, 0, writable=True)
    os.close(file)
    return QueueMemory(memory)


def measure_commands(count: int) -> Samples:
    """Send a day's worth of commands through the model; yield its rate, and the memory that it has
    taken since a tenth of them."""
    log2size = 8
    around = Nobody()
    model = Cmdqv(Parameters(), queue_memory(1 << log2size), around)
    model.write(Config.CONFIG, 4, ENABLE)
    model.write(Config.VINTF + VINTF_STRIDE, 4, ENABLE)
    model.write(Config.CMDQ_ALLOC, 4, 1 << 15 | 1)
    model.write(VCMDQ_PAGE1 + Page1.BASE, 8, log2size)
    model.write(VCMDQ_PAGE0 + Page0.CONFIG, 4, ENABLE)
    queue, mask, batch = model.registers.vcmdqs[0], 2 * (1 << log2size) - 1, 64
    prod, peaks, started = 0, [], time.monotonic()
    while around.done < count:
        prod = (prod + batch) & mask
        model.write(VCMDQ_PAGE0 + Page0.PROD, 4, prod)
        model.process(queue)
        if around.done % (count // 10) < batch:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    rate = around.done / (time.monotonic() - started)
    yield COMMANDS, rate
    yield GROWTH, peaks[-1] - peaks[0]


def register_read(count: int) -> float:
    """Return the median of the microseconds from a client's request to its answer through a
    socket."""
    parameters = Parameters()
    endpoint = Endpoint(
        identity(parameters),
        Cmdqv(parameters, QueueMemory(Memory()), Nobody()),
        Memory(),
    )
    theirs, ours = socket.socketpair()
    server = threading.Thread(target=vfio_user.serve, args=(theirs, endpoint, print), daemon=True)
    server.start()
    header = struct.Struct("<HHIII")

    def ask(command: int, body: bytes) -> None:
        ours.sendall(header.pack(1, command, header.size + len(body), 0, 0) + body)
        _, _, size, _, error = header.unpack(ours.recv(header.size, socket.MSG_WAITALL))
        ours.recv(size - header.size, socket.MSG_WAITALL)
        assert error == 0

    ask(messages.MessageType.VERSION, struct.pack("<HH", 0, 1))
    request = struct.pack("<QII", Config.PARAM, 0, 4)
    times = []
    for _ in range(count):
        started = time.perf_counter()
        ask(messages.MessageType.REGION_READ, request)
        times.append(time.perf_counter() - started)
    ours.close()
    server.join()
    return statistics.median(times) * 1e6


BENCHMARK = Benchmark((READ, COMMANDS, GROWTH), measure, seconds=20)

if __name__ == "__main__":
    sys.exit(alone(__file__))
