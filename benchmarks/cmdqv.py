"""Measure what the silicon model costs: NVMe with and without it, register reads, ten million
commands. `make bench`; `--quick` measures with a tenth of the data.
"""

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

from harness.artifacts.store import Store
from harness.devices.nvme import Disk
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.host.ability import DISK
from harness.host.host import Host
from harness.lab.inventory import CmdqvEntry, HostEntry, Virtual
from harness.lab.provide import provided
from harness.progress import Progress
from harness.smmu.cmdqv import (
    ENABLE,
    VCMDQ_PAGE0,
    VCMDQ_PAGE1,
    VINTF_STRIDE,
    Config,
    Page0,
    Page1,
)
from harness.smmu.commands import COMMAND_BYTES, Command, Opcode, encode
from harness.virtual.silicon import messages, vfio_user
from harness.virtual.silicon.client import SiliconClient
from harness.virtual.silicon.memory import PAGE, Memory
from harness.virtual.silicon.model import Cmdqv
from harness.virtual.silicon.process import QueueMemory, identity
from harness.virtual.silicon.registers import Parameters, Vcmdq
from harness.virtual.silicon.vfio_user import Endpoint

BLOCKS = 16384 // (10 if "--quick" in sys.argv else 1)
COMMANDS = 10_000_000 // (10 if "--quick" in sys.argv else 1)
READS = 20_000


def main() -> None:
    measure_register_reads()
    measure_commands()
    measure_nvme()


# -- NVMe ------------------------------------------------------------------------------------


def measure_nvme() -> None:
    """Measure writing and reading 4 KiB blocks. The data are compared bit by bit."""
    entry = HostEntry(name=f"bench-{os.getpid()}", virtual=Virtual(cmdqv=CmdqvEntry()))
    progress = Progress(enabled=False)
    seconds = {}
    with provided(entry, Store(), progress) as described, Host.open(described) as host:
        fleet = Fleet(host, progress)
        for value in ("off", "on"):
            smmu = SmmuSpec(devices=(DISK,), properties=(("cmdqv", value),))
            with fleet.guests([GuestSpec(smmus=(smmu,))], Freshness.COLD) as (guest,):
                seconds[value] = timed_copy(guest)
        assert isinstance(described.silicon, SiliconClient)
        status = described.silicon.status()
    for at, what in enumerate(("write", "read")):
        on, off = seconds["on"][at], seconds["off"][at]
        print(
            f"NVMe {what}, {BLOCKS} blocks of 4 KiB: {BLOCKS / on:.0f}/s with CMDQV, "
            f"{BLOCKS / off:.0f}/s without: {off / on:.2f} of it  limit 0.5  "
            f"{'ok' if off / on >= 0.5 else 'SLOW'}"
        )
    print(
        f"a batch of commands: {status['median_seconds'] * 1e3:.2f} ms median, "
        f"{status['longest_seconds'] * 1e3:.2f} ms longest (n={status['batches']})"
    )


def timed_copy(guest: Guest) -> tuple[float, float]:
    """Return the seconds to write the data and the seconds to read them."""
    disk = Disk(guest, guest.device(DISK)).path
    guest.run(f"dd if=/dev/urandom of=/tmp/data bs=4k count={BLOCKS} 2>/dev/null", timeout=300)

    def timed(command: str) -> float:
        started = time.monotonic()
        guest.run(f"{command} 2>/dev/null", timeout=900)
        return time.monotonic() - started

    write = timed(f"dd if=/tmp/data of={disk} bs=4k oflag=direct")
    read = timed(f"dd if={disk} of=/tmp/back bs=4k count={BLOCKS} iflag=direct")
    guest.run("cmp /tmp/data /tmp/back", timeout=300)
    return write, read


# -- the model alone -------------------------------------------------------------------------


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


def measure_commands() -> None:
    """Send a day's worth of commands through the model, and measure the memory that it holds
    then."""
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
    while around.done < COMMANDS:
        prod = (prod + batch) & mask
        model.write(VCMDQ_PAGE0 + Page0.PROD, 4, prod)
        model.process(queue)
        if around.done % (COMMANDS // 10) < batch:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    rate = around.done / (time.monotonic() - started)
    grown = peaks[-1] - peaks[0]
    print(
        f"{around.done} commands of {COMMAND_BYTES} bytes: {rate:.0f}/s, "
        f"{grown} KiB more at the end  limit 1024  {'ok' if grown <= 1024 else 'LEAK'}"
    )


def measure_register_reads() -> None:
    """Measure the time from a client's request to its answer through a socket, as QEMU reads."""
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
    for _ in range(READS):
        started = time.perf_counter()
        ask(messages.MessageType.REGION_READ, request)
        times.append(time.perf_counter() - started)
    ours.close()
    server.join()
    middle = statistics.median(times) * 1e6
    print(
        f"a register read: {middle:.0f} us median  limit 100  {'ok' if middle <= 100 else 'SLOW'}"
    )


if __name__ == "__main__":
    main()
