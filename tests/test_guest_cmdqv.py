"""What a test does to a guest's command queues, hardware carries out. The silicon model stands for
it: with one interface it has the layout that a guest sees."""

from __future__ import annotations

import shlex
import struct
from collections.abc import Sequence
from typing import cast

import pytest

from harness.faults.guest_cmdqv import GuestCmdqv
from harness.guest.console import Output
from harness.guest.guest import Guest
from harness.smmu.cmdqv import ALLOCATED, ENABLE, Config, Page0, QueueError
from harness.smmu.commands import COMMAND_BYTES, Command, Opcode, atc_inv, sync, tlbi_nh_asid
from harness.smmu.ring import Ring
from harness.virtual.silicon.model import AbortedError, Cmdqv
from harness.virtual.silicon.registers import Parameters, Vcmdq

BASE, RAM, RAM_BYTES = 0x1000_0000, 0x4000_0000, 0x4000
#: The rings that the guest's driver has set up, and others.
RINGS = [Ring(RAM + at, 3, COMMAND_BYTES) for at in (0, 0x1000)]
OTHERS = [Ring(RAM + at, 4, COMMAND_BYTES) for at in (0x2000, 0x3000)]
QUEUES = range(2)
CONFIGS = [GuestCmdqv.page0(queue, Page0.CONFIG) for queue in QUEUES]


class GuestOfModel:
    """A guest whose CMDQV is the model, and whose driver has set up two queues."""

    name = "guest0"

    def __init__(self) -> None:
        self.memory = bytearray(RAM_BYTES)
        self.model = Cmdqv(Parameters(log2_vintfs=0, log2_vcmdqs=1), self, self)
        self.rung: list[Vcmdq] = []
        self.done: list[tuple[int, Command]] = []
        #: Whether queues are enabled and disabled only by the time that somebody waits for it.
        self.slow = False
        self._late: list[tuple[int, int]] = []
        self.model.write(Config.CONFIG, 4, ENABLE)
        self.model.write(Config.VINTF, 4, ENABLE)
        for queue in QUEUES:
            self.model.write(Config.CMDQ_ALLOC + 4 * queue, 4, queue << 1 | ALLOCATED)
            GuestCmdqv(cast(Guest, self)).set_up(queue, RINGS[queue])

    # -- the guest -------------------------------------------------------------------------

    def run(self, command: str, *, timeout: float = 30.0, what: str = "") -> Output:
        if command == "cat /proc/iomem":
            return Output(command, 0, f"{BASE:08x}-1004ffff : NVDA200C:00\n".encode())
        program, verb, file, *ops = shlex.split(command)
        assert (program, verb, file) == ("hil", "mmio", "/dev/mem")
        said = "".join(f"{value:#x}\n" for op in ops for value in self._perform(op))
        return Output(command, 0, said.encode())

    def _perform(self, op: str) -> list[int]:
        kind, _, rest = op.partition(":")
        if kind == "r32":
            return [self._load(int(rest, 0))]
        if kind == "until32":
            place, _, value = rest.partition("=")
            at, mask = (int(word, 0) for word in place.split("&"))
            while self._late:
                offset, written = self._late.pop(0)
                self.model.write(offset, 4, written)
            assert self._load(at) & mask == int(value, 0), op
            return []
        at, number = (int(word, 0) for word in rest.split("="))
        self._store(at, {"w32": 4, "w64": 8}[kind], number)
        return []

    def _load(self, at: int) -> int:
        return self.model.read(at - BASE, 4)

    def _store(self, at: int, width: int, value: int) -> None:
        if at >= RAM:
            self.memory[at - RAM : at - RAM + width] = value.to_bytes(width, "little")
            return
        if self.slow and at - BASE in CONFIGS:
            self._late.append((at - BASE, value))
            return
        self.model.write(at - BASE, width, value)
        while self.rung:
            self.model.process(self.rung.pop())

    # -- the machine -----------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        if not RAM <= address <= RAM + RAM_BYTES - size:
            raise AbortedError(hex(address))
        return bytes(self.memory[address - RAM : address - RAM + size])

    def doorbell(self, queue: Vcmdq) -> None:
        self.rung.append(queue)

    def invalidate(self, commands: Sequence[Command]) -> None: ...

    def carried_out(
        self, queue: Vcmdq, commands: Sequence[Command], issued: Sequence[Command | None]
    ) -> None:
        self.done += [(queue.lvcmdq, command) for command in commands]

    def interrupt(self) -> None: ...


@pytest.fixture
def guest() -> GuestOfModel:
    return GuestOfModel()


@pytest.fixture
def cmdqv(guest: GuestOfModel) -> GuestCmdqv:
    return GuestCmdqv(cast(Guest, guest))


def check_works(guest: GuestOfModel, cmdqv: GuestCmdqv, lvcmdq: int, ring: Ring) -> None:
    """Check that commands that are given to a queue are in this ring, and are carried out."""
    assert cmdqv.ring(lvcmdq) == ring
    index, command = cmdqv.give(lvcmdq, tlbi_nh_asid(7), sync()), tlbi_nh_asid(7)
    cmdqv.wait_done(lvcmdq)
    assert guest.done[-2:] == [(lvcmdq, command), (lvcmdq, sync())]
    assert guest.read(ring.entry(index), COMMAND_BYTES) == struct.pack("<QQ", *command)
    assert cmdqv.read(cmdqv.trapped(lvcmdq, Page0.STATUS)) == ENABLE


def test_commands_are_given_and_taken_back(guest: GuestOfModel, cmdqv: GuestCmdqv) -> None:
    for queue in QUEUES:
        check_works(guest, cmdqv, queue, RINGS[queue])
        prod = cmdqv.read(cmdqv.page0(queue, Page0.PROD))
        cmdqv.carry_out(queue, sync(), sync(), sync())
        for register in (Page0.PROD, Page0.CONS):
            assert cmdqv.read(cmdqv.page0(queue, register)) == prod
    assert len(guest.done) == 10


def test_hardware_may_take_its_time_to_disable_a_queue(
    guest: GuestOfModel, cmdqv: GuestCmdqv
) -> None:
    """Until then it does not take an index."""
    guest.slow = True
    cmdqv.carry_out(0, sync(), sync(), sync())
    check_works(guest, cmdqv, 0, RINGS[0])
    assert len(guest.done) == 5


@pytest.mark.parametrize("queue", QUEUES)
def test_a_queue_gets_another_ring(guest: GuestOfModel, cmdqv: GuestCmdqv, queue: int) -> None:
    check_works(guest, cmdqv, queue, RINGS[queue])
    cmdqv.set_up(queue, OTHERS[queue])
    check_works(guest, cmdqv, queue, OTHERS[queue])
    check_works(guest, cmdqv, 1 - queue, RINGS[1 - queue])


def test_queues_are_given_back_and_get_their_rings_in_any_order(
    guest: GuestOfModel, cmdqv: GuestCmdqv
) -> None:
    for queue in reversed(QUEUES):
        cmdqv.release(queue)
        assert guest.model.registers.find(0, queue) is None
    for queue in QUEUES:
        cmdqv.map(queue)
    for queue in reversed(QUEUES):
        cmdqv.set_up(queue, OTHERS[queue])
        check_works(guest, cmdqv, queue, OTHERS[queue])


def test_a_queue_that_stopped_can_be_taken_back(guest: GuestOfModel, cmdqv: GuestCmdqv) -> None:
    index = cmdqv.give(0, sync(), atc_inv(0x2100), (Opcode.CFGI_STE, 0))
    assert cmdqv.read(cmdqv.page0(0, Page0.CONS)) == index + 1 | QueueError.ILLEGAL << 24
    gerror = cmdqv.read(cmdqv.trapped(0, Page0.GERROR))
    cmdqv.write(cmdqv.page0(0, Page0.CONFIG), 0)
    cmdqv.write(cmdqv.page0(0, Page0.GERRORN), gerror)
    cmdqv.take_back(0, index)
    check_works(guest, cmdqv, 0, RINGS[0])
