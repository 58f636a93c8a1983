"""The silicon model executes commands as a CMDQV does, and borrows the SMMU's command queue without
disturbing the kernel. No machine runs here."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.smmu.cmdqv import (
    ENABLE,
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
from harness.smmu.commands import COMMAND_BYTES, Command, Opcode
from harness.smmu.iort import smmu_identifiers
from harness.smmu.registers import (
    CMDQ_BASE,
    CMDQ_CONS,
    CMDQ_PROD,
    CR0,
    CR0_CMDQEN,
    GERROR,
    GERRORN,
)
from harness.smmu.ring import Ring
from harness.virtual.acpi import cmdqv_ssdt, iort
from harness.virtual.silicon import model
from harness.virtual.silicon.model import AbortedError, Cmdqv
from harness.virtual.silicon.registers import Parameters, Vcmdq
from harness.virtual.silicon.smmu_commands import SmmuCommands
from harness.virtual.topology import Topology

RING, ENTRIES = 0x10_0000, 8
VMID, VINTF, PHYSICAL, VIRTUAL = 5, 1, 0x900, 0x2100
SYNC: Command = (Opcode.SYNC, 0)
TLBI: Command = (Opcode.TLBI_NH_VA | 7 << 48, 0x1000)
ATC: Command = (Opcode.ATC_INV | VIRTUAL << 32, 0)


class Memory:
    def __init__(self) -> None:
        self.bytes = bytearray(RING + ENTRIES * COMMAND_BYTES)

    def read(self, address: int, size: int) -> bytes:
        if address + size > len(self.bytes):
            raise AbortedError(hex(address))
        return bytes(self.bytes[address : address + size])


class Around:
    """Surroundings of the model that record each call, with the value of CONS at that time."""

    def __init__(self) -> None:
        self.rung: list[Vcmdq] = []
        self.invalidated: list[tuple[list[Command], int]] = []
        self.done: list[Command] = []
        self.issued: list[Command | None] = []
        self.noted_at: list[int] = []
        self.interrupts = 0
        self.queue: Vcmdq | None = None

    def doorbell(self, queue: Vcmdq) -> None:
        self.rung.append(queue)

    def invalidate(self, commands: Sequence[Command]) -> None:
        assert self.queue
        self.invalidated.append((list(commands), self.queue.cons))

    def carried_out(
        self, queue: Vcmdq, commands: Sequence[Command], issued: Sequence[Command | None]
    ) -> None:
        self.done += commands
        self.issued += issued
        self.noted_at.append(queue.cons)

    def interrupt(self) -> None:
        self.interrupts += 1


class Bench:
    """A model whose VINTF 1 has one queue, set up as the host of a guest does it."""

    def __init__(self, *, log2size: int = 3) -> None:
        self.memory, self.around = Memory(), Around()
        self.model = Cmdqv(Parameters(), self.memory, self.around)
        self.write(Config.CONFIG, ENABLE)
        vintf = Config.VINTF + VINTF * VINTF_STRIDE
        self.write(vintf + VintfRegister.CONFIG, VMID << 1 | ENABLE)
        self.write(vintf + VintfRegister.SID_REPLACE, PHYSICAL)
        self.write(vintf + VintfRegister.SID_MATCH, VIRTUAL << 1 | 1)
        self.write(Config.CMDQ_ALLOC + 4 * 2, VINTF << 15 | 0 << 1 | 1)
        self.queue = self.around.queue = self.model.registers.vcmdqs[2]
        self.model.write(self.page1(Page1.BASE), 8, RING | log2size)
        self.write(self.page0(Page0.CONFIG), ENABLE)
        self.produced = 0

    @staticmethod
    def page0(register: Page0) -> int:
        return VINTF_PAGES + VINTF * 0x2_0000 + register

    @staticmethod
    def page1(register: Page1) -> int:
        return VINTF_PAGES + VINTF * 0x2_0000 + 0x1_0000 + register

    def write(self, offset: int, value: int) -> None:
        self.model.write(offset, 4, value)

    def read(self, offset: int) -> int:
        return self.model.read(offset, 4)

    def give(self, *commands: Command) -> None:
        for command in commands:
            at = RING + self.produced % ENTRIES * COMMAND_BYTES
            self.memory.bytes[at : at + COMMAND_BYTES] = struct.pack("<QQ", *command)
            self.produced = (self.produced + 1) % (2 * ENTRIES)
        self.write(self.page0(Page0.PROD), self.produced)

    def work(self) -> None:
        while self.around.rung:
            self.model.process(self.around.rung.pop())


def test_sizes_are_what_param_says() -> None:
    parameters = Parameters(2, 3, 4, 1)
    assert parameters.register == 0x4231
    assert (parameters.vintfs, parameters.vcmdqs, parameters.sids) == (4, 8, 16)
    assert parameters.bytes == 0x10_0000
    assert Bench().read(Config.PARAM) == 0x4231


@pytest.mark.parametrize("sizes", [(4, 4, 4, 1), (0, 8, 4, 1), (0, 1, 5, 1), (2, 1, 4, 1)])
def test_sizes_that_no_hardware_has(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="CMDQV"):
        Parameters(*sizes)


def test_a_guests_commands_are_done_before_cons_moves() -> None:
    bench = Bench()
    bench.give(TLBI, ATC, SYNC)
    assert bench.read(bench.page0(Page0.CONS)) == 0
    bench.work()
    expected = [
        (TLBI[0] | VMID << 32, TLBI[1]),
        (Opcode.ATC_INV | PHYSICAL << 32, 0),
    ]
    assert bench.around.invalidated == [(expected, 0)]
    assert bench.read(bench.page0(Page0.CONS)) == 3
    assert bench.around.done == [TLBI, ATC, SYNC]
    assert bench.around.issued == [*expected, None]
    assert bench.around.noted_at == [0], "who sees CONS can ask for the commands"


def test_a_ring_wraps() -> None:
    bench = Bench()
    for turn in range(5):
        bench.give(TLBI, TLBI, SYNC)
        bench.work()
        assert bench.queue.cons == 3 * (turn + 1) % (2 * ENTRIES)
    assert len(bench.around.done) == 15


def test_a_prod_beyond_the_ring_takes_commands_again() -> None:
    """A guest may write any value to PROD. The model then reads commands inside the ring only."""
    bench = Bench()
    bench.give(*[TLBI] * 7, SYNC)
    bench.write(bench.page0(Page0.PROD), 12)
    bench.work()
    assert bench.around.done == [*[TLBI] * 7, SYNC, *[TLBI] * 4]
    assert bench.queue.cons == 12


@given(cons=st.integers(0, 0xFFFF_FFFF), prod=st.integers(0, 0xFFFF_FFFF))
def test_any_cons_and_prod_stay_inside_the_ring(cons: int, prod: int) -> None:
    bench = Bench()
    for _ in range(ENTRIES):
        bench.give(SYNC)
    bench.around.rung.clear()
    bench.queue.rung = False
    bench.write(bench.page0(Page0.CONFIG), 0)
    bench.write(bench.page0(Page0.CONS), cons)
    bench.write(bench.page0(Page0.PROD), prod)
    bench.write(bench.page0(Page0.CONFIG), ENABLE)
    bench.work()
    assert len(bench.around.done) == (prod - cons) % (2 * ENTRIES) < 2 * ENTRIES
    assert bench.queue.cons % (2 * ENTRIES) == prod % (2 * ENTRIES)
    assert bench.around.interrupts == 0


def test_a_size_that_no_queue_has_counts_as_the_largest() -> None:
    bench = Bench(log2size=31)
    assert bench.queue.ring.entries == 1 << 19
    assert bench.model.read(bench.page1(Page1.BASE), 8) == RING | 31, "it is read back as it is"


@pytest.mark.parametrize(("log2size", "address"), [(0, 0x10_0060), (1, 0x10_0060), (3, RING)])
def test_a_base_is_aligned_to_the_queues_size(log2size: int, address: int) -> None:
    bench = Bench()
    bench.model.write(bench.page1(Page1.BASE), 8, 0x10_0060 | log2size)
    assert bench.queue.ring.address == address


def test_a_long_queue_is_done_in_turns() -> None:
    bench = Bench(log2size=12)
    bench.memory.bytes += struct.pack("<QQ", *SYNC) * (1 << 12)
    bench.memory.bytes[RING : RING + ENTRIES * COMMAND_BYTES] = b""
    bench.write(bench.page0(Page0.PROD), 1 << 12)
    for turn in range(1, 5):
        (queue,) = bench.around.rung
        bench.around.rung.clear()
        bench.model.process(queue)
        assert len(bench.around.done) == turn * model.MOST_AT_ONCE
    assert bench.around.rung == []
    assert bench.queue.cons == 1 << 12


def test_a_queue_is_rung_for_once_until_its_turn_comes() -> None:
    bench = Bench()
    for _ in range(5):
        bench.give(SYNC)
    assert bench.around.rung == [bench.queue]
    bench.work()
    bench.give(SYNC)
    assert bench.around.rung == [bench.queue]


def test_a_queue_from_before_a_reset_does_nothing() -> None:
    bench = Bench()
    bench.give(SYNC)
    bench.model.reset()
    bench.write(Config.CONFIG, ENABLE)
    bench.write(Config.VINTF + VINTF * VINTF_STRIDE + VintfRegister.CONFIG, VMID << 1 | ENABLE)
    bench.work()
    assert bench.around.done == []


def test_memory_that_goes_while_the_smmu_is_to_use_it_aborts() -> None:
    bench = Bench()

    def abort(commands: Sequence[Command]) -> None:
        raise AbortedError("no memory")

    bench.around.invalidate = abort  # type: ignore[method-assign]
    bench.give(TLBI, SYNC)
    bench.work()
    assert bench.read(bench.page0(Page0.CONS)) == QueueError.ABORT << 24
    assert (bench.around.done, bench.around.interrupts) == ([], 1)


@pytest.mark.parametrize(
    "command", [(0x03, 0), (0x20, 0), (0x28, 0), (0xFF, 0), (Opcode.ATC_INV | 0x77 << 32, 0)]
)
def test_what_a_guest_may_not_say_stops_its_queue(command: Command) -> None:
    bench = Bench()
    bench.give(TLBI, command, SYNC)
    bench.work()
    assert bench.read(bench.page0(Page0.CONS)) == 1 | QueueError.ILLEGAL << 24
    assert bench.read(bench.page0(Page0.GERROR)) == 1
    assert bench.read(Config.VINTF_ERR_MAP) == 1 << VINTF
    assert bench.read(Config.CMDQ_ERR_MAP) == 1 << bench.queue.index
    errors = Config.VINTF + VINTF * VINTF_STRIDE + VintfRegister.LVCMDQ_ERR_MAP
    assert bench.model.read(errors, 8) == 1
    assert bench.around.interrupts == 1
    assert [commands for commands, _ in bench.around.invalidated] == [
        [(TLBI[0] | VMID << 32, TLBI[1])]
    ]
    # As the driver does, replace the command with a SYNC and acknowledge the error.
    at = RING + COMMAND_BYTES
    bench.memory.bytes[at : at + COMMAND_BYTES] = struct.pack("<QQ", *SYNC)
    bench.write(bench.page0(Page0.GERRORN), 1)
    bench.work()
    assert bench.read(bench.page0(Page0.CONS)) == 3
    assert bench.read(Config.VINTF_ERR_MAP) == 0


@pytest.mark.parametrize("error", [one for one in QueueError if one])
def test_an_injected_error_is_met_once(error: QueueError) -> None:
    bench = Bench()
    bench.model.inject(VINTF, 0, error)
    bench.give(TLBI, SYNC)
    bench.work()
    assert bench.read(bench.page0(Page0.CONS)) == error << 24
    assert bench.around.done == []
    bench.write(bench.page0(Page0.GERRORN), 1)
    bench.work()
    assert bench.read(bench.page0(Page0.CONS)) == 2
    with pytest.raises(ValueError, match="NONE is no error"):
        bench.model.inject(VINTF, 0, QueueError.NONE)
    with pytest.raises(LookupError, match="VINTF 1 has no LVCMDQ 5"):
        bench.model.inject(VINTF, 5, error)


def test_an_injected_error_is_not_left_to_the_queues_next_owner() -> None:
    bench = Bench()
    bench.model.inject(VINTF, 0, QueueError.ABORT)
    bench.write(bench.page0(Page0.CONFIG), 0)
    bench.write(bench.page0(Page0.CONFIG), ENABLE)
    bench.give(TLBI, SYNC)
    bench.work()
    assert bench.read(bench.page0(Page0.CONS)) == 2


def test_each_stream_id_is_replaced_by_its_own() -> None:
    bench = Bench()
    vintf = Config.VINTF + VINTF * VINTF_STRIDE
    bench.write(vintf + VintfRegister.SID_REPLACE + 4, 0x2_0001)
    bench.write(vintf + VintfRegister.SID_MATCH + 4, 0x2200 << 1 | 1)
    bench.write(vintf + VintfRegister.SID_REPLACE + 8, 0xA00)
    bench.write(vintf + VintfRegister.SID_MATCH + 8, 0x2300 << 1)  # not enabled
    bench.give(*((Opcode.ATC_INV | sid << 32, sid) for sid in (0x2200, VIRTUAL, 0x2300)))
    bench.work()
    assert bench.around.issued == [
        (Opcode.ATC_INV | 0x2_0001 << 32, 0x2200),
        (Opcode.ATC_INV | PHYSICAL << 32, VIRTUAL),
    ]
    assert bench.read(bench.page0(Page0.CONS)) == 2 | QueueError.ILLEGAL << 24


def test_a_queue_that_nobody_has_may_be_dirty() -> None:
    bench = Bench()
    queue, others = bench.queue, len(bench.model.registers.vcmdqs) - 1
    assert bench.model.leave_dirty() == others
    assert (queue.cons, queue.prod, queue.in_error) == (0, 0, False), "this one has an owner"
    bench.write(Config.CMDQ_ALLOC + 4 * 3, VINTF << 15 | 1 << 1 | 1)
    found = [bench.read(bench.page0(one) + VCMDQ_STRIDE) for one in Page0]
    assert found == [3 | QueueError.ILLEGAL << 24, 7, ENABLE, ENABLE, 1, 0]
    assert bench.model.read(bench.page1(Page1.BASE) + VCMDQ_STRIDE, 8) != 0
    bench.work()
    assert bench.around.done == [], "a queue in error takes no command"


def test_a_queue_where_no_memory_is_aborts() -> None:
    bench = Bench()
    bench.model.write(bench.page1(Page1.BASE), 8, 0xDEAD_0000_0000 | 3)
    bench.give(SYNC)
    bench.work()
    assert bench.read(bench.page0(Page0.CONS)) == QueueError.ABORT << 24


def test_a_masked_error_is_no_interrupt() -> None:
    bench = Bench()
    bench.write(Config.VINTF_INT_MASK, 1 << VINTF)
    bench.give((0xFF, 0))
    bench.work()
    assert bench.read(Config.VINTF_ERR_MAP) == 1 << VINTF
    assert bench.around.interrupts == 0


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (Config.CONFIG, 0),
        (Config.VINTF + VINTF * VINTF_STRIDE, VMID << 1),
        (Config.CMDQ_ALLOC + 4 * 2, VINTF << 15),
        (Bench.page0(Page0.CONFIG), 0),
    ],
)
def test_nothing_is_done_unless_all_is_enabled(offset: int, value: int) -> None:
    bench = Bench()
    bench.write(offset, value)
    bench.give(TLBI, SYNC)
    bench.work()
    bench.model.process(bench.queue)
    assert bench.around.done == []


def test_a_queue_reset_while_its_commands_are_done_stays_reset() -> None:
    bench = Bench()

    def reset(commands: Sequence[Command]) -> None:
        bench.write(bench.page0(Page0.CONFIG), 0)
        bench.write(bench.page0(Page0.PROD), 0)

    bench.around.invalidate = reset  # type: ignore[method-assign]
    bench.give(TLBI, SYNC)
    bench.work()
    assert bench.queue.cons == 0
    assert bench.around.done == []


def test_queues_are_seen_by_number_and_by_interface() -> None:
    bench = Bench()
    direct = VCMDQ_PAGE0 + 2 * VCMDQ_STRIDE
    bench.write(direct + Page0.GERRORN, 1)
    assert bench.read(bench.page0(Page0.GERRORN)) == 1
    base = VCMDQ_PAGE1 + 2 * VCMDQ_STRIDE + Page1.BASE
    assert bench.model.read(base, 8) == RING | 3
    assert bench.read(base) == RING | 3


@given(st.lists(st.tuples(st.integers(0, 0xFFFFC), st.integers(0, 2**64 - 1), st.booleans())))
def test_no_access_breaks_the_model(accesses: list[tuple[int, int, bool]]) -> None:
    bench = Bench()
    for offset, value, wide in accesses:
        size = 8 if wide else 4
        at = offset & ~(size - 1)
        bench.model.write(at, size, value & (1 << 8 * size) - 1)
        assert 0 <= bench.model.read(at, size) < 1 << 8 * size
    bench.around.queue = bench.model.registers.vcmdqs[2]
    bench.work()


def test_commands_leave_nothing_behind() -> None:
    """The model keeps nothing of the commands that it executed. `make bench` measures its memory
    over ten million."""
    bench = Bench()
    sizes = []
    for _ in range(3):
        for _ in range(1000):
            bench.give(TLBI, TLBI, SYNC)
            bench.work()
        bench.around.invalidated.clear()
        bench.around.done.clear()
        sizes.append(len(repr(vars(bench.model))))
    assert sizes[0] == sizes[1] == sizes[2]


# -- the SMMU's queue ------------------------------------------------------------------------

BASE, LOG2 = 0x0C00_0000, 4
KERNEL_RING, OURS = 0x4000_0000, Ring(0x5000_0000, 3, COMMAND_BYTES)


class EmulatedSmmu:
    """QEMU's SMMU behind qtest, and a kernel that issues commands between the harness's steps."""

    def __init__(self, plan: list[int]) -> None:
        self.memory: dict[int, Command] = {}
        self.registers = {CR0: CR0_CMDQEN | 5, CMDQ_BASE: KERNEL_RING | LOG2, CMDQ_PROD: 0}
        self.registers |= {CMDQ_CONS: 0, GERROR: 0, GERRORN: 0}
        self.taken: list[Command] = []
        self._plan = plan
        self._shadow = 0
        self.given: list[Command] = []

    # -- QEMU ------------------------------------------------------------------------------

    def _consume(self) -> None:
        base = self.registers[CMDQ_BASE]
        entries = 1 << (base & 0x1F)
        while self.registers[CR0] & CR0_CMDQEN:
            cons = self.registers[CMDQ_CONS]
            if cons == self.registers[CMDQ_PROD]:
                return
            address = (base & ~0x1F) + cons % entries * COMMAND_BYTES
            self.taken.append(self.memory[address])
            self.registers[CMDQ_CONS] = (cons + 1) % (2 * entries)

    def at_once(self, *commands: str) -> list[int]:
        answers = []
        for command in commands:
            verb, address, *value = command.split()
            register = int(address, 16) - BASE
            if verb.startswith("read"):
                answers.append(self.registers[register])
                continue
            self.registers[register] = int(value[0], 16)
            if register in (CMDQ_PROD, CR0):
                self._consume()
        self._kernel()
        return answers

    # -- the kernel ------------------------------------------------------------------------

    def _kernel(self) -> None:
        """Do what the kernel's CPUs do between two steps: check CONS and issue commands."""
        base = self.registers[CMDQ_BASE]
        assert base == KERNEL_RING | LOG2
        pending = (self._shadow - self.registers[CMDQ_CONS]) % (2 << LOG2)
        assert pending <= 1 << LOG2, "CONS is not the kernel's"
        count = min(self._plan.pop(0) if self._plan else 0, (1 << LOG2) - pending)
        for _ in range(count):
            command = (0x1000 + len(self.given), 0)
            self.given.append(command)
            at = KERNEL_RING + self._shadow % (1 << LOG2) * COMMAND_BYTES
            self.memory[at] = command
            self._shadow = (self._shadow + 1) % (2 << LOG2)
        if count:
            self.registers[CMDQ_PROD] = self._shadow
            self._consume()

    def write(self, address: int, data: bytes) -> None:
        for at in range(0, len(data), COMMAND_BYTES):
            self.memory[address + at] = struct.unpack_from("<QQ", data, at)


@given(
    plan=st.lists(st.integers(0, 5), max_size=40),
    batches=st.lists(st.integers(1, 20), min_size=1, max_size=4),
)
def test_the_kernels_commands_and_ours_are_all_taken_once_and_in_order(
    plan: list[int], batches: list[int]
) -> None:
    smmu = EmulatedSmmu(plan)
    ours: list[Command] = []
    commands = SmmuCommands(smmu, BASE, smmu)  # type: ignore[arg-type]
    for size in batches:
        batch = [(len(ours) + number, 1) for number in range(size)]
        ours += batch
        commands.carry_out(batch, OURS)
        assert [one for one in smmu.taken if one[1] == 1] == ours, "done when it returns"
    assert [one for one in smmu.taken if one[1] == 0] == smmu.given
    assert smmu.registers[CR0] == CR0_CMDQEN | 5


def test_a_queue_that_is_off_is_left_alone() -> None:
    smmu = EmulatedSmmu([])
    smmu.registers[CR0] = 0
    SmmuCommands(smmu, BASE, smmu).carry_out([TLBI], OURS)  # type: ignore[arg-type]
    assert smmu.taken == []
    assert smmu.registers[CR0] == 0


def test_a_command_that_the_smmu_does_not_take_is_no_secret() -> None:
    smmu = EmulatedSmmu([])
    smmu._consume = lambda: None  # type: ignore[method-assign]
    with pytest.raises(HarnessError, match="took 0x0 of 1 commands"):
        SmmuCommands(smmu, BASE, smmu).carry_out([TLBI], OURS)  # type: ignore[arg-type]


# -- ACPI ------------------------------------------------------------------------------------


def test_smmus_are_named_by_the_iort() -> None:
    assert smmu_identifiers(iort(Topology(smmus=3).smmu_nodes())) == [1, 2, 3]


@pytest.mark.parametrize("table", [b"", b"SSDT" + bytes(60), b"IORT" + bytes(60)[:32] + b"\1" * 8])
def test_what_is_no_iort_is_refused(table: bytes) -> None:
    with pytest.raises(ValueError, match="IORT"):
        smmu_identifiers(table)


def test_the_ssdt_is_one() -> None:
    table = cmdqv_ssdt(1, 0x40_1008_0000, 0x10_0000, 232)
    assert table[:4] == b"SSDT"
    assert int.from_bytes(table[4:8], "little") == len(table)
    assert sum(table) % 256 == 0
    assert b"NVDA200C" in table
