"""How the boundary answers each call of QEMU's. QEMU and the iommufd are played here: a machine
without a Grace has no iommufd that makes event queues. tests/lab has the real ones."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import selectors
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.boundary.on_host import rules
from harness.boundary.on_host.calls import Calls
from harness.boundary.on_host.queues import Queues
from harness.boundary.on_host.relay import Log
from harness.boundary.on_host.rules import Address, Call, Rule
from harness.boundary.on_host.seccomp import GoneError, Notification, machine
from harness.smmu.vevents import QueueType, VEvent

SMMUV3, CMDQV = Address(QueueType.ARM_SMMUV3), Address(QueueType.TEGRA241_CMDQV)
#: The number of IOMMU_DESTROY (include/uapi/linux/iommufd.h).
DESTROY = 0x3B80
#: What became of a call besides an errno, or 0.
THROUGH, GONE = "let through", "gone"
#: Where QEMU has its structures, and the number that its next file gets.
AT, NUMBER = 64, 77
#: The answer of an SMMUv3 to GET_HW_INFO: flags, a reserved word, then IDR0 to IDR5, IIDR and AIDR.
IDENTIFICATION = struct.pack("<10I", 0, 0, *range(0x1000_0000, 0x1000_0008))


class Iommufd:
    """Plays an iommufd. `asked` are the calls that it was given; it fails the next one with
    `fails`."""

    def __init__(self) -> None:
        self.file = os.memfd_create("iommufd")
        self.asked: list[tuple[int, bytes]] = []
        self.fails = 0
        #: Of each queue the kernel's end and the number of its file, by the queue's id.
        self.queues: dict[int, tuple[socket.socket, int]] = {}
        self._next = 10
        self.hw_info = IDENTIFICATION
        self.hw_type = 2
        self.processes = 0

    def ioctl(self, file: int, request: int, fields: Any, mutate: bool = False) -> int:
        assert os.fstat(file).st_ino == os.fstat(self.file).st_ino, "the caller's own iommufd"
        assert mutate or request == DESTROY
        self.asked.append((request, bytes(fields)))
        if self.fails:
            raise OSError(self.fails, "played")
        what: dict[int, Callable[[Any], None]] = {
            Call.VEVENTQ_ALLOC: self._allocate,
            DESTROY: self._destroy,
            Call.GET_HW_INFO: self._tell,
            Call.HWPT_INVALIDATE: self._invalidate,
        }
        what[request](fields)
        return 0

    def _allocate(self, fields: bytearray) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.queues[self._next] = ours, theirs.detach()
        struct.pack_into("<2I", fields, 20, self._next, self.queues[self._next][1])
        self._next += 1

    def _destroy(self, fields: bytes) -> None:
        size, identity = struct.unpack("<2I", fields)
        assert size == 8
        if is_open(self.queues[identity][1]):
            raise OSError(errno.EBUSY, "the queue's file is open")
        self.queues.pop(identity)[0].close()

    def _tell(self, fields: bytearray) -> None:
        length, data = struct.unpack_from("<IQ", fields, 12)
        ctypes.memmove(data, self.hw_info, min(length, len(self.hw_info)))
        struct.pack_into("<I", fields, 12, len(self.hw_info))
        struct.pack_into("<I", fields, 24, self.hw_type)

    def _invalidate(self, fields: bytearray) -> None:
        _, _, data, _, length, count, _ = struct.unpack("<IIQ4I", fields)
        self.asked.append((0, ctypes.string_at(data, length * count)))
        struct.pack_into("<I", fields, 24, self.processes)

    def close(self) -> None:
        for ours, _ in self.queues.values():
            ours.close()
        os.close(self.file)


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


class Qemu:
    """Plays QEMU, which makes one call at a time, and the kernel's side of the listener. `memory`
    is all of QEMU's memory."""

    def __init__(self, iommufd: Iommufd, log: Path) -> None:
        self.iommufd, self._log = iommufd, log
        self.memory = os.memfd_create("memory")
        self.outcomes: list[int | str] = []
        #: QEMU's end of the socket that it was given last.
        self.given: socket.socket | None = None
        #: The error with which QEMU cannot be given a file; GONE if it was killed.
        self.full: int | str = 0
        self.killed = False
        self.queues = Queues(selectors.DefaultSelector(), Log(str(log)))
        self.calls = Calls(self, self.queues, self.queues.log)  # type: ignore[arg-type]

    def rules(self, *new: Rule, at: Address = SMMUV3) -> None:
        self.queues.rules_at(at).load(new)

    def call(self, number: int, *args: int) -> int | str:
        """Make a system call; return what became of it."""
        self._call = Notification(1, os.getpid(), number, (*args, *[0] * (6 - len(args))))
        before = len(self.outcomes)
        self.calls.serve()
        if self.killed:
            return GONE
        (outcome,) = self.outcomes[before:]
        return outcome

    def ioctl(self, request: int, structure: bytes, file: int | None = None) -> int | str:
        os.pwrite(self.memory, structure, AT)
        file = self.iommufd.file if file is None else file
        # A request is a u32, whatever the register's upper half has.
        return self.call(machine().ioctl, file, 1 << 40 | request, AT)

    def allocate(self, kind: int = 1, depth: int = 64) -> int | str:
        return self.ioctl(Call.VEVENTQ_ALLOC, struct.pack("<8I", 32, 0, 5, kind, depth, 0, 0, 0))

    def destroy(self, identity: int) -> int | str:
        return self.ioctl(DESTROY, struct.pack("<2I", 8, identity))

    def read(self, size: int) -> bytes:
        return os.pread(self.memory, size, AT)

    def logged(self) -> list[dict[str, Any]]:
        self.queues.log.flush()
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [{name: one[name] for name in one if name != "time"} for one in lines]

    def close(self) -> None:
        for identity in [*self.queues.by_id]:
            queue = self.queues.by_id[identity]
            self.queues.hang_up(queue)
            os.close(queue.real)
        if self.given:
            self.given.close()
        self.queues.selector.close()
        os.close(self.memory)

    # -- the listener ----------------------------------------------------------------------

    def receive(self) -> Notification:
        return self._call

    def let_through(self, call: Notification) -> None:
        self._gone()
        self.outcomes.append(THROUGH)

    def answer(self, call: Notification, error: int = 0) -> None:
        self._gone()
        self.outcomes.append(error)

    def add_descriptor(self, call: Notification, ours: int) -> int:
        if self.full == GONE:
            self.killed = True
        self._gone()
        if self.full:
            raise OSError(self.full, "played")
        if self.given:
            self.given.close()
        self.given = socket.socket(fileno=os.dup(ours))
        return NUMBER

    def open_memory(self, call: Notification) -> int:
        return os.dup(self.memory)

    def _gone(self) -> None:
        if self.killed:
            raise GoneError


def open_files() -> set[str]:
    return {one.name for one in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qemu]:
    """Yield QEMU, and see that no descriptor of the boundary's stays open."""
    before = open_files()
    iommufd = Iommufd()
    made = Qemu(iommufd, tmp_path / "log")
    monkeypatch.setattr("harness.boundary.on_host.calls.fcntl.ioctl", iommufd.ioctl)
    yield made
    made.close()
    iommufd.close()
    made.queues.log._file.close()
    assert open_files() - before == set()


# -- vEVENTQs --------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [SMMUV3, CMDQV], ids=lambda one: one.kind.name)
def test_qemu_gets_a_socket_in_place_of_the_kernels_queue(qemu: Qemu, address: Address) -> None:
    kind = address.kind
    assert qemu.allocate(kind) == 0
    asked = struct.pack("<8I", 32, 0, 5, kind, 64, 0, 0, 0)
    assert qemu.iommufd.asked == [(Call.VEVENTQ_ALLOC, asked)]
    assert qemu.read(32) == struct.pack("<8I", 32, 0, 5, kind, 64, 10, NUMBER, 0)
    (queue,) = qemu.queues.by_id.values()
    assert (queue.address, queue.id, queue.depth, queue.at_qemu) == (address, 10, 64, NUMBER)
    assert not os.get_blocking(queue.real)
    assert not queue.ours.getblocking()
    (logged,) = qemu.logged()
    assert logged == {
        "queue": [kind, 0], "call": "VEVENTQ_ALLOC", "did": "pass", "answer": "ok",
        "viommu": 5, "depth": 64, "id": 10,
    }  # fmt: skip
    record = VEvent(0, bytes(kind.record_bytes - 8)).encode()
    qemu.iommufd.queues[10][0].send(record)
    qemu.queues.on_kernel_ready(queue)
    assert qemu.given is not None
    assert qemu.given.recv(4096) == record


def test_a_queue_is_as_deep_as_a_rule_says(qemu: Qemu) -> None:
    qemu.rules(rules.Depth(2))
    assert [qemu.allocate(), qemu.allocate()] == [0, 0]
    assert [struct.unpack("<8I", fields)[4] for _, fields in qemu.iommufd.asked] == [2, 64]
    assert [queue.depth for queue in qemu.queues.by_id.values()] == [2, 64]
    assert [(one["did"], one["depth"]) for one in qemu.logged()] == [("depth", 2), ("pass", 64)]


def test_a_slot_is_the_first_that_no_queue_of_the_type_has(qemu: Qemu) -> None:
    for kind in (1, 1, 2, 1, 2):
        assert qemu.allocate(kind) == 0
    assert qemu.destroy(11) == 0
    assert qemu.allocate() == 0
    slots = [tuple(one["queue"]) for one in qemu.logged() if one["call"] == "VEVENTQ_ALLOC"]
    assert slots == [(1, 0), (1, 1), (2, 0), (1, 2), (2, 1), (1, 1)]


def test_the_rules_of_a_slot_are_for_the_queue_there(qemu: Qemu) -> None:
    qemu.rules(rules.FailCall(errno.ENOSPC), at=Address(QueueType.ARM_SMMUV3, 1))
    assert [qemu.allocate(), qemu.allocate(depth=32), qemu.allocate()] == [0, errno.ENOSPC, 0]
    assert qemu.logged()[1] == {
        "queue": [1, 1], "call": "VEVENTQ_ALLOC", "did": "fail_call", "answer": "ENOSPC",
        "viommu": 5, "depth": 32,
    }  # fmt: skip


def test_the_kernel_refuses_a_queue(qemu: Qemu) -> None:
    qemu.iommufd.fails = errno.EINVAL
    assert qemu.allocate() == errno.EINVAL
    assert qemu.read(32) == struct.pack("<8I", 32, 0, 5, 1, 64, 0, 0, 0)
    assert qemu.queues.by_id == {}
    assert [(one["answer"], one["did"]) for one in qemu.logged()] == [("EINVAL", "pass")]


@pytest.mark.parametrize("full", [errno.EMFILE, GONE])
def test_a_queue_that_qemu_does_not_get_is_destroyed(qemu: Qemu, full: int | str) -> None:
    qemu.full = full
    assert qemu.allocate() == full
    assert qemu.iommufd.asked[1:] == [(DESTROY, struct.pack("<2I", 8, 10))]
    assert qemu.iommufd.queues == {}
    assert qemu.queues.by_id == {}
    assert qemu.logged() == []


def test_a_queue_of_a_type_that_nobody_knows_is_the_kernels(qemu: Qemu) -> None:
    assert qemu.allocate(kind=3) == THROUGH
    assert qemu.iommufd.asked == []


@pytest.mark.parametrize(("size", "outcome"), [(31, THROUGH), (33, 0), (4096, 0), (4097, THROUGH)])
def test_the_structure_of_a_queue_may_grow(qemu: Qemu, size: int, outcome: int | str) -> None:
    fields = struct.pack("<8I", size, 0, 5, 1, 64, 0, 0, 0).ljust(size, b"\xee")
    assert qemu.ioctl(Call.VEVENTQ_ALLOC, fields) == outcome
    assert qemu.iommufd.asked == ([(Call.VEVENTQ_ALLOC, fields)] if outcome == 0 else [])
    assert qemu.read(size)[32:] == fields[32:]


def test_a_queue_is_destroyed(qemu: Qemu) -> None:
    assert [qemu.allocate(), qemu.allocate()] == [0, 0]
    queue = qemu.queues.by_id[10]
    assert qemu.destroy(10) == 0
    assert [*qemu.queues.by_id] == [11]
    assert [*qemu.iommufd.queues] == [11]
    assert queue.closed
    assert qemu.logged()[-1] == {
        "queue": [1, 0], "call": "DESTROY", "did": "pass", "answer": "ok", "id": 10
    }  # fmt: skip


def test_a_queue_whose_file_is_open_is_busy(qemu: Qemu) -> None:
    qemu.rules(rules.BusyOnDestroy())
    assert qemu.allocate() == 0
    real = qemu.queues.by_id[10].real
    assert qemu.destroy(10) == errno.EBUSY
    assert not is_open(real)
    assert qemu.logged()[-1] == {
        "queue": [1, 0], "call": "DESTROY", "did": "busy_on_destroy", "answer": "EBUSY", "id": 10
    }  # fmt: skip
    # QEMU may try again, and the kernel has the queue still.
    assert qemu.destroy(10) == THROUGH


def test_another_object_is_destroyed_by_the_kernel(qemu: Qemu) -> None:
    assert qemu.allocate() == 0
    assert qemu.destroy(9) == THROUGH
    assert [*qemu.queues.by_id] == [10]


def test_reads_of_a_queue_are_interrupted(qemu: Qemu) -> None:
    qemu.rules(rules.InterruptRead())
    assert qemu.allocate() == 0
    assert qemu.call(machine().read, NUMBER + 1, AT, 64) == THROUGH, "another file"
    assert qemu.call(machine().read, NUMBER, AT, 64) == errno.EAGAIN
    assert qemu.logged()[-1] == {
        "queue": [1, 0], "call": "read", "did": "interrupt_read", "answer": "EAGAIN", "id": 10
    }  # fmt: skip
    assert qemu.call(machine().read, NUMBER, AT, 64) == THROUGH, "the rule is used up"


# -- what the host's SMMU is -----------------------------------------------------------------


def hw_info(length: int = len(IDENTIFICATION), size: int = 40) -> bytes:
    return struct.pack("<4IQ2IQ", size, 0, 3, length, AT + 64, 0, 0, 0)


def identification(qemu: Qemu, length: int = len(IDENTIFICATION)) -> bytes:
    return os.pread(qemu.memory, length, AT + 64)


def test_registers_of_the_hosts_smmu_look_different(qemu: Qemu) -> None:
    first, fifth = rules.HostIdr(0, clear=1, set=0x6, count=2), rules.HostIdr(5, clear=1 << 28)
    qemu.rules(first, rules.HostIdr(0, set=1 << 31), fifth)
    for changed in (0x1000_0006, 0x1000_0006, 0x9000_0000):
        assert qemu.ioctl(Call.GET_HW_INFO, hw_info()) == 0
        words = struct.unpack("<10I", identification(qemu))
        assert words == (
            0, 0, changed, *range(0x1000_0001, 0x1000_0005), 0x5, 0x1000_0006, 0x1000_0007
        )  # fmt: skip
        told = struct.pack("<4IQ2IQ", 40, 0, 3, len(IDENTIFICATION), AT + 64, 2, 0, 0)
        assert qemu.read(40) == told
    assert qemu.logged() == 3 * [
        {"queue": [1, 0], "call": "GET_HW_INFO", "did": "host_idr", "answer": "ok"}
    ]


def test_bits_are_cleared_before_others_are_set(qemu: Qemu) -> None:
    qemu.rules(rules.HostIdr(1, clear=0xF, set=0x8))
    assert qemu.ioctl(Call.GET_HW_INFO, hw_info()) == 0
    assert struct.unpack_from("<I", identification(qemu), 12) == (0x1000_0008,)


@pytest.mark.parametrize(
    ("length", "changes"), [(11, False), (12, True)], ids=["a byte too short", "just enough"]
)
def test_a_register_that_qemu_has_no_room_for_is_not_changed(
    qemu: Qemu, length: int, changes: bool
) -> None:
    """What the kernel tells of the length is all that it has."""
    qemu.rules(rules.HostIdr(0, set=0xFF))
    os.pwrite(qemu.memory, b"\xee" * 64, AT + 64)
    assert qemu.ioctl(Call.GET_HW_INFO, hw_info(length)) == 0
    expected = IDENTIFICATION[:8] + (b"\xff" if changes else b"\x00") + IDENTIFICATION[9:length]
    assert identification(qemu, 64) == expected + b"\xee" * (64 - length)
    assert struct.unpack_from("<I", qemu.read(40), 12) == (len(IDENTIFICATION),)


def test_the_answer_of_another_iommu_is_passed_on(qemu: Qemu) -> None:
    qemu.rules(rules.HostIdr(0, set=0xFF))
    qemu.iommufd.hw_type = 1
    assert qemu.ioctl(Call.GET_HW_INFO, hw_info()) == 0
    assert identification(qemu) == IDENTIFICATION


@pytest.mark.parametrize(
    ("structure", "outcome"),
    [
        (hw_info(size=27), THROUGH),
        (hw_info(size=28), 0),
        (hw_info(size=4096), 0),
        (hw_info(size=4097), THROUGH),
        (hw_info(4096), 0),
        (hw_info(4097), THROUGH),
    ],
    ids=["short", "shortest", "longest", "long", "longest data", "long data"],
)
def test_the_kernel_says_what_is_wrong_with_a_size(
    qemu: Qemu, structure: bytes, outcome: int | str
) -> None:
    qemu.rules(rules.HostIdr(0, set=0xFF))
    os.truncate(qemu.memory, 1 << 14)
    assert qemu.ioctl(Call.GET_HW_INFO, structure) == outcome
    assert len(qemu.iommufd.asked) == (outcome == 0)


def test_the_kernels_error_is_passed_on(qemu: Qemu) -> None:
    qemu.rules(rules.HostIdr(0, set=0xFF))
    qemu.iommufd.fails = errno.ENOENT
    assert qemu.ioctl(Call.GET_HW_INFO, hw_info()) == errno.ENOENT
    assert qemu.read(40) == hw_info()
    assert qemu.logged() == []


# -- other calls -----------------------------------------------------------------------------


def words(size: int, *values: int) -> bytes:
    return struct.pack(f"<{size // 4}I", size, *values, *[0] * (size // 4 - len(values) - 1))


#: struct iommu_hwpt_alloc with the data of an SMMUv3, of the stage-2 parent, and of a paging HWPT;
#: and one that ends where the older ones did, before what would be the data's type.
NESTED, PARENT, PAGING = words(48, 0, 1, 2, 0, 0, 2), words(48, 1, 1, 2, 0, 0, 2), words(48, 0, 1)
OLD = words(24, 0, 1, 2, 0, 0) + struct.pack("<I", 2)
#: struct iommu_viommu_alloc: flags, type, …
VIOMMU = {kind: words(48, 0, kind, 1, 2) for kind in range(4)}


def failing(call: Call, at: Address = SMMUV3) -> tuple[Rule, Address]:
    return rules.FailCall(errno.EBUSY, call), at


@pytest.mark.parametrize(
    ("rule", "request_", "structure", "outcome"),
    [
        (failing(Call.HWPT_ALLOC), Call.HWPT_ALLOC, NESTED, errno.EBUSY),
        (failing(Call.HWPT_ALLOC), Call.HWPT_ALLOC, words(28, *[0] * 5, 2), errno.EBUSY),
        (failing(Call.HWPT_ALLOC), Call.HWPT_ALLOC, PARENT, THROUGH),
        (failing(Call.HWPT_ALLOC), Call.HWPT_ALLOC, PAGING, THROUGH),
        (failing(Call.HWPT_ALLOC), Call.HWPT_ALLOC, struct.pack("<7I", 27, *[0] * 5, 2), THROUGH),
        (failing(Call.HWPT_ALLOC), Call.HWPT_ALLOC, OLD, THROUGH),
        (failing(Call.HWPT_ALLOC_NEST_PARENT), Call.HWPT_ALLOC, PARENT, errno.EBUSY),
        (failing(Call.HWPT_ALLOC_NEST_PARENT), Call.HWPT_ALLOC, words(48, 3), errno.EBUSY),
        (failing(Call.HWPT_ALLOC_NEST_PARENT), Call.HWPT_ALLOC, words(48, 2), THROUGH),
        (failing(Call.HWPT_ALLOC_NEST_PARENT), Call.HWPT_ALLOC, NESTED, THROUGH),
        (failing(Call.VIOMMU_ALLOC), Call.VIOMMU_ALLOC, VIOMMU[1], errno.EBUSY),
        (failing(Call.VIOMMU_ALLOC), Call.VIOMMU_ALLOC, VIOMMU[2], THROUGH),
        (failing(Call.VIOMMU_ALLOC), Call.VIOMMU_ALLOC, VIOMMU[0], THROUGH),
        (failing(Call.VIOMMU_ALLOC), Call.VIOMMU_ALLOC, VIOMMU[3], THROUGH),
        (failing(Call.VIOMMU_ALLOC, CMDQV), Call.VIOMMU_ALLOC, VIOMMU[2], errno.EBUSY),
        (failing(Call.VIOMMU_ALLOC, CMDQV), Call.VIOMMU_ALLOC, VIOMMU[1], THROUGH),
        (failing(Call.VDEVICE_ALLOC), Call.VDEVICE_ALLOC, words(32), errno.EBUSY),
        (failing(Call.VDEVICE_ALLOC), Call.ATTACH_PT, words(32), THROUGH),
        (failing(Call.ATTACH_PT), Call.ATTACH_PT, words(32), errno.EBUSY),
        (failing(Call.DETACH_PT), Call.DETACH_PT, words(32), errno.EBUSY),
        (failing(Call.HW_QUEUE_ALLOC, CMDQV), Call.HW_QUEUE_ALLOC, words(40), errno.EBUSY),
        (failing(Call.GET_HW_INFO), Call.GET_HW_INFO, hw_info(), errno.EBUSY),
        (failing(Call.HWPT_ALLOC), Call.GET_HW_INFO, hw_info(), THROUGH),
    ],
)  # fmt: skip
def test_a_rule_fails_its_call_and_no_other_one(
    qemu: Qemu,
    rule: tuple[Rule, Address],
    request_: Call,
    structure: bytes,
    outcome: int | str,
) -> None:
    failed, at = rule
    qemu.rules(failed, at=at)
    assert qemu.ioctl(request_, structure) == outcome
    assert qemu.iommufd.asked == []
    assert qemu.read(len(structure)) == structure
    if outcome == THROUGH:
        assert qemu.logged() == []
        return
    assert isinstance(failed, rules.FailCall)
    assert qemu.logged() == [
        {"queue": [*at], "call": failed.call.name, "did": "fail_call", "answer": "EBUSY"}
    ]
    assert qemu.ioctl(request_, structure) == THROUGH, "the rule is used up"


def test_only_the_file_of_a_viommu_with_a_page_is_mapped_with_an_error(qemu: Qemu) -> None:
    other = os.memfd_create("other")

    def map(file: int) -> int | str:
        return qemu.call(machine().mmap, 0, 4096, 3, 1, file, 0)

    qemu.rules(rules.FailCall(errno.ENXIO, Call.MMAP), at=CMDQV)
    assert map(qemu.iommufd.file) == THROUGH, "it has no vIOMMU yet"
    assert qemu.ioctl(Call.VIOMMU_ALLOC, VIOMMU[1]) == THROUGH
    assert map(qemu.iommufd.file) == THROUGH, "this kind has nothing to map"
    assert qemu.ioctl(Call.VIOMMU_ALLOC, VIOMMU[2]) == THROUGH
    assert qemu.ioctl(Call.VIOMMU_ALLOC, VIOMMU[1], other) == THROUGH
    assert map(other) == THROUGH
    assert map((1 << 32) - 1) == THROUGH, "it is anonymous"
    # A descriptor is an int, whatever the register's upper half has.
    assert map(1 << 32 | qemu.iommufd.file) == errno.ENXIO
    assert map(qemu.iommufd.file) == THROUGH, "the rule is used up"
    assert qemu.logged() == [
        {"queue": [2, 0], "call": "MMAP", "did": "fail_call", "answer": "ENXIO"}
    ]
    os.close(other)


def invalidation(total: int, *, size: int = 32, length: int = 16) -> bytes:
    return struct.pack("<IIQ4I", size, 4, AT + 64, 1, length, total, 0)


def test_invalidations_are_the_kernels_without_a_rule(qemu: Qemu) -> None:
    os.truncate(qemu.memory, 0)
    request = machine().ioctl, qemu.iommufd.file, Call.HWPT_INVALIDATE, AT
    assert qemu.call(*request) == THROUGH, "QEMU's memory is not looked at"


@pytest.mark.parametrize(
    ("structure", "outcome"),
    [
        (invalidation(3), THROUGH),
        (invalidation(4), errno.EIO),
        (invalidation(4, size=31), THROUGH),
        (invalidation(4, size=33), errno.EIO),
        (invalidation(4, length=4096), errno.EIO),
        (invalidation(4, length=4097), THROUGH),
    ],
    ids=["too few", "enough", "short", "longer", "long entries", "entries too long"],
)
def test_a_batch_is_refused_that_has_what_is_to_be_processed(
    qemu: Qemu, structure: bytes, outcome: int | str
) -> None:
    qemu.rules(rules.RefuseInvalidation(3))
    batch = os.urandom(4 * 4096)
    os.pwrite(qemu.memory, batch, AT + 64)
    qemu.iommufd.processes = 3
    assert qemu.ioctl(Call.HWPT_INVALIDATE, structure) == outcome
    if outcome == THROUGH:
        assert qemu.iommufd.asked == []
        return
    length = struct.unpack_from("<I", structure, 20)[0]
    (request, fields), (_, processed) = qemu.iommufd.asked
    assert request == Call.HWPT_INVALIDATE
    first, _, rest = fields[:8], fields[8:16], fields[16:]
    assert (first, rest) == (struct.pack("<2I", 32, 4), struct.pack("<4I", 1, length, 3, 0))
    assert processed == batch[: 3 * length]
    assert qemu.read(32) == structure[:24] + struct.pack("<2I", 3, 0)
    assert qemu.logged() == [
        {"queue": [1, 0], "call": "HWPT_INVALIDATE", "did": "refuse_invalidation",
         "answer": "EIO", "entries": 4, "processed": 3}
    ]  # fmt: skip


def test_the_kernels_own_error_goes_before_the_rules(qemu: Qemu) -> None:
    qemu.rules(rules.RefuseInvalidation(1))
    qemu.iommufd.fails = errno.ENODEV
    assert qemu.ioctl(Call.HWPT_INVALIDATE, invalidation(2) + bytes(96)) == errno.ENODEV


@pytest.mark.parametrize(
    "rule", [rules.RefuseInvalidation(), rules.FailCall(errno.EIO, Call.HWPT_INVALIDATE)], ids=str
)
def test_nothing_of_a_refused_batch_is_processed(qemu: Qemu, rule: Rule) -> None:
    qemu.rules(rule)
    assert qemu.ioctl(Call.HWPT_INVALIDATE, invalidation(2)) == errno.EIO
    assert qemu.iommufd.asked == []
    assert struct.unpack_from("<I", qemu.read(32), 24) == (0,)
    assert [(one["entries"], one["processed"]) for one in qemu.logged()] == [(2, 0)]


# -- QEMU's memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1 << 20, (1 << 64) - 8], ids=["no memory", "no file offset"])
def test_a_pointer_to_nothing_is_efault(qemu: Qemu, at: int) -> None:
    request = machine().ioctl, qemu.iommufd.file, Call.VEVENTQ_ALLOC, at
    assert qemu.call(*request) == errno.EFAULT


def test_a_structure_that_ends_beyond_the_memory_is_efault(qemu: Qemu) -> None:
    os.pwrite(qemu.memory, struct.pack("<I", 32), AT)
    os.truncate(qemu.memory, AT + 31)
    request = machine().ioctl, qemu.iommufd.file, Call.VEVENTQ_ALLOC, AT
    assert qemu.call(*request) == errno.EFAULT
    os.truncate(qemu.memory, AT + 32)
    assert qemu.call(*request) == THROUGH


def test_an_answer_that_cannot_be_written_is_efault(
    qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory may end, or be taken away, between the call and its answer."""
    qemu.rules(rules.HostIdr(0, set=0xFF))
    written = os.pwrite

    def short(file: int, data: bytes, offset: int) -> int:
        return written(file, data[:-1], offset)

    os.pwrite(qemu.memory, hw_info(), AT)
    monkeypatch.setattr("harness.boundary.on_host.calls.os.pwrite", short)
    request = machine().ioctl, qemu.iommufd.file, Call.GET_HW_INFO, AT
    assert qemu.call(*request) == errno.EFAULT


def test_a_caller_that_was_killed_needs_no_answer(qemu: Qemu) -> None:
    qemu.killed = True
    assert qemu.ioctl(Call.VDEVICE_ALLOC, words(32)) == GONE
