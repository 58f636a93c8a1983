"""The boundary works as on a lab host: its zip, a child under its filter, the relay of records.
There is no iommufd here; tests that need one are in tests/lab."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import itertools
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.boundary import client
from harness.boundary.client import SMMUV3, Answered, Passage, behind_boundary, entries
from harness.boundary.on_host import rules
from harness.boundary.on_host.__main__ import Loop
from harness.boundary.on_host.calls import DESTROY, Calls
from harness.boundary.on_host.relay import Log, Queue, connected
from harness.boundary.on_host.rules import Address, Call, Rule
from harness.boundary.on_host.seccomp import (
    Listener,
    Notification,
    UnsupportedError,
    check_rights,
    machine,
)
from harness.guest.description import GuestSpec
from harness.host.program import pack
from harness.smmu import loss
from harness.smmu.vevents import QueueType, VEvent, lost_events
from harness.waiting import wait_for

#: This program calls IOMMU_VEVENTQ_ALLOC on a descriptor that is no iommufd, and prints the errors.
ALLOCATE = """
import errno, fcntl, struct, sys
fields = struct.pack("<8I", 32, 0, 5, {type}, 64, 0, 0, 0)
for _ in range({times}):
    try:
        fcntl.ioctl(sys.stdin, {request}, fields)
    except OSError as problem:
        print(errno.errorcode[problem.errno], flush=True)
"""
WAIT = "print('up', flush=True); import signal; signal.pause()"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "boundary.pyz"
    path.write_bytes(pack(client.PACKAGE))
    return path


class Started:
    """A program that a boundary started, with the boundary's control socket and log."""

    def __init__(self, process: subprocess.Popen[str], control: str, log: Path) -> None:
        self.process, self.control, self.log = process, control, log

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(self.control)
        return sock

    def ask(self, request: dict[str, object]) -> dict[str, Any]:
        with self.connect() as sock:
            sock.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(sock.makefile().readline())
            return answer

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> tuple[int, str, str]:
        out, error = self.process.communicate(timeout=20)
        return self.process.returncode, out, error


Start = Callable[..., Started]


@pytest.fixture
def start(archive: Path, tmp_path: Path) -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def go(*argv: str, options: tuple[str, ...] = (), prefix: tuple[str, ...] = ()) -> Started:
        path = str(tmp_path / "control.sock")
        log = tmp_path / "boundary.log"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            number = listener.fileno()
            command = [sys.executable, "-I", "-S", str(archive), str(number), str(log)]
            process = subprocess.Popen(
                [*prefix, *command, *options, "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[number],
            )
        running.append(process)
        return Started(process, path, log)

    yield go
    for process in running:
        process.kill()
        process.communicate()


def early(*new: Rule, queue: Address = SMMUV3) -> str:
    boundary = behind_boundary(GuestSpec(), {queue: new}, reads=True).boundary
    assert boundary
    return boundary.options[-1]


def allocate(times: int = 1, kind: int = 1, request: int = Call.VEVENTQ_ALLOC) -> str:
    return ALLOCATE.format(times=times, type=kind, request=int(request))


def test_status_and_output_are_the_programs(start: Start) -> None:
    assert start("sh", "-c", "echo out; echo err >&2; exit 7").end() == (7, "out\n", "err\n")


def test_a_signal_is_a_status_as_in_a_shell(start: Start) -> None:
    assert start("sh", "-c", "kill -9 $$").end()[0] == 128 + signal.SIGKILL


def test_a_program_that_is_not_there(start: Start) -> None:
    status, _, error = start("/none/qemu").end()
    assert status == 127
    assert "/none/qemu: No such file" in error


def test_the_kernel_is_asked_when_no_rule_answers(start: Start) -> None:
    ended = start(sys.executable, "-c", allocate())
    assert ended.end()[:2] == (0, "ENOTTY\n")  # the answer of /dev/null to this ioctl
    assert '"call":"VEVENTQ_ALLOC","did":"pass","answer":"ENOTTY"' in ended.log.read_text()


@pytest.mark.parametrize(
    ("kind", "request_", "rule", "queue"),
    [
        (1, Call.VEVENTQ_ALLOC, rules.FailCall(errno.ENOMEM, count=2), SMMUV3),
        (2, Call.VEVENTQ_ALLOC, rules.FailCall(errno.ENOMEM, count=2), client.CMDQV),
        # In this structure the type is at another offset: where VEVENTQ_ALLOC has viommu_id.
        (0, Call.HW_QUEUE_ALLOC, rules.FailCall(
            errno.ENOMEM, Call.HW_QUEUE_ALLOC, count=2), client.CMDQV),
    ],
)  # fmt: skip
def test_a_failing_allocation_fails_as_often_as_said(
    start: Start, kind: int, request_: int, rule: Rule, queue: Address
) -> None:
    program = allocate(3, kind, request_)
    ended = start(sys.executable, "-c", program, options=(early(rule, queue=queue),))
    assert ended.end()[1].split() == ["ENOMEM", "ENOMEM", "ENOTTY"]
    assert ended.log.read_text().count('"did":"fail_call","answer":"ENOMEM"') == 2


def test_a_rule_of_another_type_does_not_count(start: Start) -> None:
    rule = early(rules.FailCall(errno.ENOMEM))
    ended = start(sys.executable, "-c", allocate(1, kind=2), options=(rule,))
    assert ended.end()[1] == "ENOTTY\n"


#: This program makes ioctls with these structures, and prints the answers, each with the u32 that
#: is then at offset 24: the entry_num of an HWPT_INVALIDATE.
CALL = """
import errno, fcntl, struct, sys
for request, structure in {calls}:
    structure = bytearray(structure)
    try:
        fcntl.ioctl(sys.stdin, request, structure, True)
    except OSError as problem:
        print(errno.errorcode[problem.errno], struct.unpack_from("<I", structure, 24)[0])
"""
Asked = tuple[Call, bytes]
#: struct iommu_hwpt_alloc of the three kinds, and any structure of a call of which none is read.
NESTED: Asked = Call.HWPT_ALLOC, struct.pack("<8I", 48, 0, 1, 2, 0, 0, 2, 16) + bytes(16)
PARENT: Asked = Call.HWPT_ALLOC, struct.pack("<8I", 48, 1, 1, 2, 0, 0, 0, 0) + bytes(16)
PAGING: Asked = Call.HWPT_ALLOC, struct.pack("<8I", 48, 0, 1, 2, 0, 0, 0, 0) + bytes(16)
#: A structure that ends where the older ones did, before the data's type.
OLD: Asked = Call.HWPT_ALLOC, struct.pack("<8I", 24, 0, 1, 2, 0, 0, 2, 0)


def anything(call: Call) -> Asked:
    return call, struct.pack("<8I", 32, *range(1, 8))


def invalidation(total: int, *, size: int = 32, length: int = 16, data: int = 0) -> Asked:
    fields = struct.pack("<IIQ4I", size, 4, data, 1, length, total, 0)
    return Call.HWPT_INVALIDATE, fields


def answers(start: Start, calls: list[Asked], *options: str) -> tuple[list[str], Started]:
    program = CALL.format(calls=[(int(call), structure) for call, structure in calls])
    ended = start(sys.executable, "-c", program, options=options)
    status, out, error = ended.end()
    assert (status, error) == (0, "")
    return out.splitlines(), ended


@pytest.mark.parametrize(
    ("rule", "calls", "expected"),
    [
        (Call.HWPT_ALLOC, [PARENT, PAGING, OLD, NESTED, NESTED],
         ["ENOTTY", "ENOTTY", "ENOTTY", "EBUSY", "ENOTTY"]),
        (Call.HWPT_ALLOC_NEST_PARENT, [NESTED, PAGING, PARENT, PARENT],
         ["ENOTTY", "ENOTTY", "EBUSY", "ENOTTY"]),
        *(
            (call, [anything(call)] * 2, ["EBUSY", "ENOTTY"])
            for call in (Call.ATTACH_PT, Call.DETACH_PT, Call.GET_HW_INFO, Call.VDEVICE_ALLOC)
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Call) else "",
)  # fmt: skip
def test_a_call_fails_and_no_other_one(
    start: Start, rule: Call, calls: list[Asked], expected: list[str]
) -> None:
    said, ended = answers(start, calls, early(rules.FailCall(errno.EBUSY, rule)))
    assert [line.split()[0] for line in said] == expected
    (logged,) = entries(ended.log.read_text().splitlines())
    assert isinstance(logged, Answered)
    assert (logged.call, logged.did, logged.answer) == (rule.name, "fail_call", "EBUSY")


WATCHED = "--watch=HWPT_INVALIDATE"


@pytest.mark.parametrize(
    ("rule", "calls", "expected"),
    [
        (rules.FailCall(call=Call.HWPT_INVALIDATE, count=2),
         [invalidation(5), invalidation(0), invalidation(5)],
         ["ENOMEM 0", "ENOMEM 0", "ENOTTY 5"]),
        (rules.RefuseInvalidation(count=2),
         [invalidation(0), invalidation(5), invalidation(1), invalidation(5)],
         ["ENOTTY 0", "EIO 0", "EIO 0", "ENOTTY 5"]),
        # It waits for a call that has more.
        (rules.RefuseInvalidation(4, count=9), [invalidation(3), invalidation(4)],
         ["ENOTTY 3", "ENOTTY 4"]),
        # The kernel says what is wrong with a structure.
        (rules.RefuseInvalidation(), [invalidation(5, size=31), invalidation(5, length=4097)],
         ["ENOTTY 5", "ENOTTY 5"]),
        # No entries are there.
        (rules.RefuseInvalidation(1), [invalidation(5)], ["EFAULT 5"]),
    ],
    ids=str,
)  # fmt: skip
def test_invalidations_are_refused_as_the_kernel_does_it(
    start: Start, rule: Rule, calls: list[Asked], expected: list[str]
) -> None:
    assert answers(start, calls, WATCHED, early(rule))[0] == expected


def test_the_log_says_how_much_of_a_batch_was_processed(start: Start) -> None:
    _, ended = answers(start, [invalidation(5)], WATCHED, early(rules.RefuseInvalidation()))
    (logged,) = entries(ended.log.read_text().splitlines())
    assert isinstance(logged, Answered)
    assert (logged.queue, logged.call) == (SMMUV3, "HWPT_INVALIDATE")
    assert (logged.answer, logged.entries, logged.processed) == ("EIO", 5, 0)
    assert str(logged).endswith("HWPT_INVALIDATE: refuse_invalidation: EIO, 0 of 5 entries")


#: This program asks for vIOMMUs of two types at two files, and maps files before and after it.
MAP = """
import errno, fcntl, mmap, os, struct, sys
def file():
    made = os.memfd_create("file")
    os.truncate(made, 4096)
    return made
def map(number, flags=mmap.MAP_SHARED):
    try:
        mmap.mmap(number, 4096, flags).close()
        return "ok"
    except OSError as problem:
        return errno.errorcode[problem.errno]
def viommu(number, kind):
    try:
        fcntl.ioctl(number, {request}, struct.pack("<8I", 48, 0, kind, 1, 2, 0, 0, 0) + bytes(16))
    except OSError as problem:
        assert problem.errno == errno.ENOTTY, problem
plain, cmdqv = file(), file()
print(map(cmdqv))
viommu(cmdqv, 2)
viommu(plain, 1)
print(map(plain), map(file()), map(-1, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))
print(map(cmdqv, mmap.MAP_PRIVATE), map(cmdqv), map(cmdqv), map(cmdqv))
"""


def test_only_the_mapping_of_a_vintfs_page_fails(start: Start) -> None:
    rule = rules.FailCall(errno.ENXIO, Call.MMAP, count=2)
    program = MAP.format(request=int(Call.VIOMMU_ALLOC))
    options = ("--watch=MMAP", early(rule, queue=client.CMDQV))
    ended = start(sys.executable, "-c", program, options=options)
    status, out, error = ended.end()
    assert (status, error) == (0, "")
    assert out.splitlines() == ["ok", "ok ok ok", "ok ENXIO ENXIO ok"]
    logged = entries(ended.log.read_text().splitlines())
    assert [(one.queue, str(one).split(": ", 1)[1]) for one in logged] == [
        (client.CMDQV, "MMAP: fail_call: ENXIO")
    ] * 2


#: This program waits for a signal, does something, and says that it is done.
SIGNALLED = """
import contextlib, fcntl, mmap, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
file = os.memfd_create("file")
os.truncate(file, 4096)
print(os.getpid(), flush=True)
signal.sigwait([signal.SIGUSR1])
with contextlib.suppress(OSError):
    {action}
print("done", flush=True)
"""
INVALIDATE = f"fcntl.ioctl(0, {int(Call.HWPT_INVALIDATE)}, bytes(32))"
SHARE = "mmap.mmap(file, 4096)"


@pytest.mark.parametrize(
    ("action", "options", "supervised"),
    [
        (INVALIDATE, (), False),
        (INVALIDATE, ("--watch=MMAP",), False),
        (INVALIDATE, (WATCHED,), True),
        (SHARE, (WATCHED,), False),
        (SHARE, ("--watch=MMAP",), True),
        ("mmap.mmap(file, 4096, mmap.MAP_PRIVATE)", ("--watch=MMAP",), False),
        ("mmap.mmap(-1, 4096)", ("--watch=MMAP",), False),  # shared, but no file
    ],
)
def test_a_frequent_call_waits_for_the_boundary_only_if_it_is_watched(
    start: Start, action: str, options: tuple[str, ...], supervised: bool
) -> None:
    """A call that is supervised cannot be made while the boundary stands still."""
    running = start(sys.executable, "-c", SIGNALLED.format(action=action), options=options)
    child, out = int(running.line()), running.process.stdout
    assert out
    running.process.send_signal(signal.SIGSTOP)
    try:
        os.kill(child, signal.SIGUSR1)
        if supervised:
            assert not select.select([out], [], [], 0.5)[0]
        else:
            assert select.select([out], [], [], 10)[0], "it waits for the boundary"
    finally:
        running.process.send_signal(signal.SIGCONT)
    assert running.end()[:2] == (0, "done\n")


def test_reads_of_other_files_pass(start: Start) -> None:
    program = "import os; print(len(os.read(os.open('/dev/zero', os.O_RDONLY), 40)))"
    options = ("--reads", early(rules.InterruptRead(count=5)))
    assert start(sys.executable, "-c", program, options=options).end()[1] == "40\n"


def test_requests_that_cannot_be_met_are_refused(start: Start) -> None:
    running = start(sys.executable, "-c", WAIT)
    assert running.line() == "up"

    def refused(**request: object) -> str:
        return str(running.ask(request)["error"])

    drop = rules.Drop().to_json()
    assert "no queue ARM_SMMUV3 0 now" in refused(do="rules", queue=[1, 0], rules=[drop])
    assert "not a queue: [9, 0]" in refused(do="rules", queue=[9, 0], rules=[drop])
    assert "no queue ARM_SMMUV3 256" in refused(do="rules", queue=[1, 256], rules=[])
    assert "not a rule" in refused(do="rules", queue=[1, 0], rules=[{"rule": "x"}])
    assert "no queue ARM_SMMUV3 0" in refused(do="release", queue=[1, 0])
    assert "unknown request" in refused(do="dance", queue=[1, 0])
    interrupt = rules.InterruptRead().to_json()
    assert "does not supervise reads" in refused(do="rules", queue=[1, 0], rules=[interrupt])
    refuse = rules.RefuseInvalidation().to_json()
    unwatched = "refuse_invalidation: this boundary does not supervise HWPT_INVALIDATE"
    assert refused(do="rules", queue=[1, 0], rules=[refuse]) == unwatched
    unfit = rules.FailCall(errno.EIO, Call.HWPT_ALLOC).to_json()
    assert "allowed: ARM_SMMUV3 0" in refused(do="rules", queue=[2, 0], rules=[unfit])
    # A rule for a call can be set before there is a queue. The rules that it replaces are returned.
    fail = rules.FailCall(errno.EINVAL).to_json()
    assert running.ask({"do": "rules", "queue": [1, 0], "rules": [fail]}) == {"left": []}
    assert running.ask({"do": "rules", "queue": [1, 0], "rules": []}) == {"left": [fail]}
    assert running.ask({"do": "status"}) == {"queues": []}


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"[1]", id="no object"),
        pytest.param(b'{"do": "rules", "queue": [1, 0], "rules": [1]}', id="no rule"),
        pytest.param(b'{"do": "rules", "queue": [1, 0], "rules": 1}', id="no rules"),
        pytest.param(b'{"do": "rules", "queue": [1, 0]}', id="nothing"),
        pytest.param(
            b'{"do": "rules", "queue": [1, 0], "rules": [{"rule": "inject", "record": [1]}]}',
            id="no record",
        ),
        pytest.param(b'{"do": {}, "queue": [1, 0]}', id="no word"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"\xff", id="not UTF-8"),
    ],
)
def test_no_request_ends_the_program_or_keeps_others_waiting(start: Start, line: bytes) -> None:
    running = start(sys.executable, "-c", WAIT)
    assert running.line() == "up"
    with running.connect() as silent, running.connect() as deaf, running.connect() as odd:
        silent.sendall(b'{"do": "st')
        deaf.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                deaf.send(b'{"do": "status"}\n')
        odd.sendall(line + b"\n")
        assert "error" in json.loads(odd.makefile().readline())
        started = time.monotonic()
        assert running.ask({"do": "status"}) == {"queues": []}
        assert time.monotonic() - started < 2, "it waited for another client"
        silent.sendall(b'atus"}\n')
        assert json.loads(silent.makefile().readline()) == {"queues": []}


#: This program makes ioctls with pointers to memory that it does not have, or has in part, and
#: prints the errors. `memory` ends after 4096 bytes; a page may be larger.
FAULT = """
import ctypes, errno, mmap, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] * 5
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
memory = libc.mmap(None, 2 * mmap.PAGESIZE, 3, 34, 2 ** 64 - 1, 0) + mmap.PAGESIZE - 4096
libc.munmap(memory + 4096, mmap.PAGESIZE)
for pointer in {pointers}:
    for request in {requests}:
        ctypes.memmove(memory, {content}, {size})
        done = libc.ioctl(0, request, pointer)
        print(done and errno.errorcode[ctypes.get_errno()], flush=True)
"""
#: The calls whose structures a boundary reads: HWPT_INVALIDATE if there is a rule.
READ = [
    *map(int, (Call.HWPT_ALLOC, Call.HWPT_INVALIDATE, Call.VIOMMU_ALLOC, Call.VEVENTQ_ALLOC)),
    DESTROY,
]


def test_a_pointer_to_nothing_is_efault_as_in_the_kernel(start: Start) -> None:
    pointers = "(0, 8, memory + 4094, memory + 4096, 2**47 - 4, 2**63 - 4, 2**63, 2**64 - 8)"
    program = FAULT.format(pointers=pointers, requests=READ, content="b''", size=0)
    options = (WATCHED, early(rules.RefuseInvalidation()))
    status, out, error = start(sys.executable, "-c", program, options=options).end()
    assert (status, error) == (0, "")
    assert out.split() == ["EFAULT"] * 8 * len(READ)


@pytest.mark.parametrize(
    ("size", "data", "answer"),
    [
        (40, (40, "memory + 4096 - 40"), "ENOTTY"),  # all is there: the kernel's answer
        (0, (40, "memory"), "ENOTTY"),
        (27, (40, "memory"), "ENOTTY"),
        (0xFFFF_FFFF, (40, "memory"), "ENOTTY"),
        (40, (0xFFFF_FFFF, "memory"), "ENOTTY"),
        (4096, (40, "memory"), "EFAULT"),
    ],
)
def test_a_structure_of_an_odd_size_is_left_to_the_kernel(
    start: Start, size: int, data: tuple[int, str], answer: str
) -> None:
    """GET_HW_INFO is made in QEMU's place, with sizes that QEMU says."""
    program = FAULT.format(
        pointers="(memory + 64,)",
        requests=[int(Call.GET_HW_INFO)],
        content=f"bytes(64) + struct.pack('<IIIIQ', {size}, 0, 1, {data[0]}, {data[1]})",
        size=88,
    )
    rule = early(rules.HostIdr())
    status, out, error = start(sys.executable, "-c", program, options=(rule,)).end()
    assert (status, out, error) == (0, f"{answer}\n", "")


def test_being_terminated_is_passed_on(start: Start) -> None:
    running = start(sys.executable, "-c", WAIT)
    assert running.line() == "up"
    running.process.terminate()
    assert running.end()[0] == 128 + signal.SIGTERM


def test_the_program_dies_with_its_supervisor(start: Start) -> None:
    running = start(sys.executable, "-c", "import os; print(os.getpid(), flush=True);" + WAIT)
    child = int(running.line())
    running.process.kill()
    running.process.wait()
    wait_for("the child to be gone", lambda: not Path(f"/proc/{child}/fd/0").exists(), deadline=5)


def test_a_second_supervisor_is_refused(start: Start, archive: Path, tmp_path: Path) -> None:
    """A second supervisor is refused in the same way as a kernel without seccomp's user
    notification: the program does not run, and the reason is printed."""
    inner = [sys.executable, "-I", str(archive), "0", str(tmp_path / "log"), "--", "echo", "ran"]
    listener = "import socket,os,sys; s=socket.socket(socket.AF_UNIX); s.bind(''); s.listen()"
    program = f"{listener}; os.dup2(s.fileno(), 0); os.execv(sys.argv[1], sys.argv[1:])"
    status, out, error = start(sys.executable, "-c", program, *inner).end()
    assert status == os.EX_CONFIG
    assert out == ""
    assert "boundary: seccomp user notification: another supervisor supervises" in error


def test_without_the_right_to_look_it_is_said_what_is_missing() -> None:
    child = os.fork()
    if child == 0:
        said = ""
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            check_rights(1)
        except UnsupportedError as problem:
            said = str(problem)
        os._exit(0 if "no right to access" in said and "ptrace_scope" in said else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_zip_is_the_same_for_the_same_sources() -> None:
    first = pack(client.PACKAGE)
    pack.cache_clear()
    assert first == pack(client.PACKAGE)
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}, "it has times in it"


def test_the_zip_needs_nothing_but_the_standard_library(archive: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import harness.boundary.on_host.__main__; "
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(archive)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) - {"harness", "__main__"} <= {*sys.stdlib_module_names}


# -- the relay -------------------------------------------------------------------------------


class Relay:
    """A relay between a simulated kernel and QEMU. A read from the kernel returns exactly what one
    send to `kernel` put there."""

    def __init__(self, kind: QueueType, log: Path) -> None:
        self.address, self.log = Address(kind), log
        control = socket.socket(socket.AF_UNIX)
        control.bind("")  # the kernel chooses an abstract name
        control.listen()
        self._sockets = [control]
        self.boundary = Loop(Listener(-1), control, Log(str(log)), False, rules.FREQUENT)

    def allocate(self) -> None:
        """Give QEMU a queue, as Calls does."""
        self.kernel, real = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, self.qemu = connected()
        for end in (real, ours, self.qemu):
            end.setblocking(False)
        self._sockets += [self.kernel, real, ours, self.qemu]
        at_address = self.boundary.queues.rules_at(self.address)
        self.queue = Queue(*self.address, 7, 64, real.fileno(), ours, 9, at_address)
        self.boundary.queues.adopt(self.queue)

    def destroy(self) -> None:
        """Take the queue from QEMU, as Calls does."""
        self.boundary.queues.hang_up(self.boundary.queues.by_id.pop(self.queue.id))

    def load(self, *new: Rule, early: bool = False) -> list[Rule]:
        return self.boundary.control.load(self.address, new, early)

    def turn(self) -> None:
        self.boundary.turn()

    def received(self) -> list[bytes]:
        """Return what QEMU can read now, one entry for each read."""
        got = []
        while True:
            try:
                got.append(self.qemu.recv(4096))
            except BlockingIOError:
                return got

    def passages(self) -> list[Passage]:
        self.boundary.log.flush()
        return [
            one for one in entries(self.log.read_text().splitlines()) if isinstance(one, Passage)
        ]

    def close(self) -> None:
        for one in self._sockets:
            one.close()


@contextmanager
def relay(kind: QueueType, tmp_path: Path, *initial: Rule) -> Iterator[Relay]:
    made = Relay(kind, tmp_path / "log")
    try:
        made.load(*initial, early=True)
        made.allocate()
        yield made
    finally:
        made.close()


def record(sequence: int, kind: QueueType = QueueType.ARM_SMMUV3) -> bytes:
    return VEvent(sequence, os.urandom(kind.data_bytes)).encode()


@pytest.mark.parametrize("kind", list(QueueType))
def test_one_read_of_many_records_becomes_a_record_a_read(kind: QueueType, tmp_path: Path) -> None:
    records = [record(number, kind) for number in range(5)]
    header = lost_events(9).encode()
    with relay(kind, tmp_path) as one:
        one.kernel.send(b"".join([*records, header]))
        one.turn()
        assert one.received() == [*records, header]
        assert [passage.got for passage in one.passages()] == [(r,) for r in (*records, header)]


def test_a_reader_that_does_not_read_stops_the_relay_and_loses_nothing(tmp_path: Path) -> None:
    sent = [record(number) for number in range(3000)]
    with relay(QueueType.ARM_SMMUV3, tmp_path) as one:
        todo = iter(sent)
        got: list[bytes] = []
        one.kernel.setblocking(False)
        for batch in iter(lambda: list(itertools.islice(todo, 10)), []):
            while True:
                try:
                    one.kernel.send(b"".join(batch))
                    break
                except BlockingIOError:
                    # The kernel's queue is full because the relay waits for QEMU.
                    got += one.received()
                    one.turn()
            if not one.queue.blocked:
                one.turn()
        held = one.queue.received - one.queue.delivered
        assert held <= 64
        while len(got) < len(sent):
            got += one.received()
            if len(got) < len(sent):
                one.turn()
        assert got == sent
        assert [passage.sent[0] for passage in one.passages()] == sent


def test_a_delayed_record_comes_when_it_is_due(tmp_path: Path) -> None:
    with relay(QueueType.ARM_SMMUV3, tmp_path) as one:
        one.load(rules.Delay(0.2))
        sent = [record(0), record(1)]
        one.kernel.send(b"".join(sent))
        one.turn()
        assert one.received() == []
        one.turn()  # waits for the record to be due
        assert one.received() == sent
        first, second = one.passages()
        assert (first.did, second.did) == ("delay", "pass")
        assert first.time - first.arrived >= 0.2


def test_a_step_of_the_wall_clock_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, step = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: real() + step)
    with relay(QueueType.ARM_SMMUV3, tmp_path) as one:
        for number, step in enumerate((0.0, -3600.0)):
            one.load(rules.Pass())
            sent = record(number)
            one.kernel.send(sent)
            one.turn()
            assert one.received() == [sent], f"after a step of {step} s"
        one.load(rules.Delay(0.2))
        one.kernel.send(record(2))
        one.turn()
        step = 3600.0
        one.boundary.queues.deliver_due()
        assert one.received() == [], "it is not due because the clock was set"
        one.turn()
        assert len(one.received()) == 1
        delayed = one.passages()[-1]
        assert 0.2 <= delayed.time - delayed.arrived < 60
        assert delayed.time > real() + 3000, "the log's times are the wall clock's"


def test_rules_act_on_what_is_held_when_they_come(tmp_path: Path) -> None:
    with relay(QueueType.ARM_SMMUV3, tmp_path) as one:
        one.load(rules.Hold())
        sent = [record(number) for number in range(4)]
        one.kernel.send(b"".join(sent))
        one.turn()
        assert one.received() == []
        assert one.boundary.control.status()["queues"][0]["waiting"] == 4
        assert one.load(rules.Drop(), rules.Short(8)) == [rules.Hold()]
        assert one.received() == [sent[1][:8], *sent[2:]]
        assert [passage.did for passage in one.passages()] == ["drop", "short", "pass", "pass"]


def test_a_header_goes_on_from_what_passed_before(tmp_path: Path) -> None:
    with relay(QueueType.ARM_SMMUV3, tmp_path) as one:
        one.kernel.send(record(41))
        one.turn()
        one.load(rules.LostHeader())
        assert one.received()[1:] == [lost_events(42).encode()]


def test_what_the_reader_never_took_is_logged_so(tmp_path: Path) -> None:
    with relay(QueueType.ARM_SMMUV3, tmp_path) as one:
        one.load(rules.Delay(60))
        one.kernel.send(record(0))
        one.turn()
        one.qemu.close()
        one.turn()
        (passage,) = one.passages()
        assert (passage.did, len(passage.got), passage.sent) == ("undelivered", 1, ())


def test_of_a_batch_what_the_reader_took_is_told_from_the_rest(tmp_path: Path) -> None:
    sent: list[bytes] = []
    with relay(QueueType.ARM_SMMUV3, tmp_path) as one:
        while not one.queue.blocked:
            sent += [record(len(sent) + at) for at in range(8)]
            one.kernel.send(b"".join(sent[-8:]))
            one.turn()
        got = one.received()
        one.qemu.close()
        one.turn()
        passages = one.passages()
        assert [record for passage in passages for record in passage.got] == sent
        assert [record for passage in passages for record in passage.sent] == got
        assert passages[-1].did == "undelivered"


def test_rules_for_a_queue_that_was_just_closed_do_no_harm(tmp_path: Path) -> None:
    with relay(QueueType.ARM_SMMUV3, tmp_path) as one:
        one.qemu.close()
        one.turn()
        one.load(rules.Inject(record(0)))
        assert [passage.did for passage in one.passages()] == ["undelivered"]


def test_rules_for_a_queue_that_was_closed_while_it_was_full_do_no_harm(tmp_path: Path) -> None:
    with relay(QueueType.ARM_SMMUV3, tmp_path) as one:
        number = itertools.count()
        while not one.queue.blocked:
            one.kernel.send(record(next(number)))
            one.turn()
        one.qemu.close()
        one.turn()
        assert one.load(rules.Drop()) == []
        one.load(rules.Inject(record(0)))
        assert one.passages()[-1].did == "undelivered"
        one.destroy()


class OneCall:
    """A kernel that announces one call of this process, whose memory is a file, and notes its
    answer."""

    def __init__(self, call: Notification, memory: bytes) -> None:
        self.call, self.answers = call, list[int]()
        self.memory = os.memfd_create("memory")
        os.write(self.memory, memory)

    def receive(self) -> Notification:
        return self.call

    def open_memory(self, call: Notification) -> int:
        return os.dup(self.memory)

    def answer(self, call: Notification, error: int = 0) -> None:
        self.answers.append(error)


def test_a_queue_outlives_a_call_to_destroy_it_that_fails(tmp_path: Path) -> None:
    with relay(QueueType.ARM_SMMUV3, tmp_path) as one:
        request = Notification(1, os.getpid(), machine().ioctl, (1 << 20, DESTROY, 0, 0, 0, 0))
        listener = OneCall(request, struct.pack("<II", 8, one.queue.id))
        Calls(listener, one.boundary.queues, one.boundary.log).serve()  # type: ignore[arg-type]
        assert listener.answers == [errno.EBADF]
        sent = record(0)
        one.kernel.send(sent)
        one.turn()
        assert one.received() == [sent]


def test_the_kernel_gets_all_fields_that_qemu_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes so many bytes as the structure says, so they must all be there."""
    sent = struct.pack("<9I", 36, 0, 5, QueueType.ARM_SMMUV3, 64, 0, 0, 0, 0xABCD)
    asked = list[bytes]()

    def ioctl(file: int, request: int, fields: bytearray, mutate: bool) -> int:
        asked.append(bytes(fields))
        raise OSError(errno.EOPNOTSUPP, "a field that this kernel does not know")

    monkeypatch.setattr("harness.boundary.on_host.calls.fcntl.ioctl", ioctl)
    with relay(QueueType.ARM_SMMUV3, tmp_path) as one:
        request = Notification(
            1, os.getpid(), machine().ioctl, (0, int(Call.VEVENTQ_ALLOC), 0, 0, 0, 0)
        )
        listener = OneCall(request, sent)
        Calls(listener, one.boundary.queues, one.boundary.log).serve()  # type: ignore[arg-type]
        assert asked == [sent]
        assert listener.answers == [errno.EOPNOTSUPP]


@pytest.mark.parametrize("size", [0, 8, 31, 4097])
def test_the_kernel_says_what_is_wrong_with_a_size(start: Start, size: int) -> None:
    program = allocate().replace('("<8I", 32,', f'("<8I", {size},')
    ended = start(sys.executable, "-c", program, options=(early(rules.FailCall()),))
    assert ended.end()[:2] == (0, "ENOTTY\n")
    assert ended.log.read_text() == ""


@pytest.mark.parametrize(
    ("own", "stops", "answer", "told"),
    [(0, 3, errno.EIO, 3), (errno.ENODEV, 1, errno.ENODEV, 1)],
    ids=["the rule's error", "the kernel's own"],
)
def test_the_kernel_gets_the_beginning_of_a_refused_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int, stops: int, answer: int, told: int
) -> None:
    """Only an iommufd processes a part of a batch, so here one is played."""
    batch = os.urandom(5 * 16)
    processed = list[bytes]()

    def ioctl(file: int, request: int, fields: bytearray, mutate: bool) -> int:
        assert (request, mutate) == (Call.HWPT_INVALIDATE, True)
        size, hwpt, data, kind, length, count, reserved = struct.unpack("<IIQ4I", fields)
        assert (size, hwpt, kind, length, count, reserved) == (32, 4, 1, 16, 3, 0)
        processed.append(ctypes.string_at(data, count * length))
        struct.pack_into("<I", fields, 24, stops)
        if own:
            raise OSError(own, "the kernel's own")
        return 0

    monkeypatch.setattr("harness.boundary.on_host.calls.fcntl.ioctl", ioctl)
    with relay(QueueType.ARM_SMMUV3, tmp_path, rules.RefuseInvalidation(3)) as one:
        request = Notification(
            1, os.getpid(), machine().ioctl, (0, int(Call.HWPT_INVALIDATE), 0, 0, 0, 0)
        )
        listener = OneCall(request, invalidation(5, data=64)[1].ljust(64) + batch)
        Calls(listener, one.boundary.queues, one.boundary.log).serve()  # type: ignore[arg-type]
        assert listener.answers == [answer]
        assert processed == [batch[: 3 * 16]]
        memory = os.pread(listener.memory, 32, 0)
        assert memory == invalidation(told, data=64)[1], "only entry_num is changed"
        one.boundary.log.flush()
        (logged,) = entries(one.log.read_text().splitlines())
        assert isinstance(logged, Answered)
        assert (logged.entries, logged.processed) == (5, told)


def numbered(event: bytes, sequence: int) -> bytes:
    """Return the same event with another sequence number."""
    return VEvent(sequence, VEvent.decode(event).data).encode()


def test_merging_goes_before_the_script_and_leaves_a_trace(tmp_path: Path) -> None:
    first, second, third = record(0), record(2), record(3)
    equal = numbered(first, 1)
    with relay(QueueType.ARM_SMMUV3, tmp_path, rules.Merge(), rules.Merge()) as one:
        assert one.load(rules.Pass(), rules.Drop()) == [], "a standing rule is never used up"
        one.kernel.send(b"".join([first, equal, second, third]))
        one.turn()
        assert one.received() == [first, numbered(third, 2)]
        state = one.boundary.control.status()["queues"][0]
        assert (state["received"], state["delivered"], state["left"]) == (4, 2, [])
        assert [(passage.did, passage.got, passage.sent) for passage in one.passages()] == [
            ("merge", (equal,), ()),
            ("pass", (first,), (first,)),
            ("drop", (numbered(second, 1),), ()),
            ("pass", (numbered(third, 2),), (numbered(third, 2),)),
        ]


def test_events_of_two_reads_are_not_merged_and_stay_without_a_gap(tmp_path: Path) -> None:
    first = record(0)
    sent = [numbered(first, number) for number in range(5)]
    with relay(QueueType.ARM_SMMUV3, tmp_path, rules.Merge()) as one:
        one.kernel.send(b"".join(sent[:3]))
        one.turn()
        one.kernel.send(b"".join(sent[3:]))
        one.turn()
        got = one.received()
        assert got == [first, numbered(first, 1)]
        assert loss.reports(QueueType.ARM_SMMUV3, got) == []
        assert [passage.got for passage in one.passages() if passage.did == "merge"] == [
            (sent[1],), (sent[2],), (sent[4],)
        ]  # fmt: skip


def test_a_queue_that_is_allocated_again_merges_too(tmp_path: Path) -> None:
    first = record(0)
    equal = numbered(first, 1)
    with relay(QueueType.ARM_SMMUV3, tmp_path, rules.Merge()) as one:
        for _ in range(2):
            one.kernel.send(first + equal)
            one.turn()
            one.kernel.send(numbered(first, 2))
            one.turn()
            # The kernel numbers the events of each queue from 0.
            assert one.received() == [first, equal]
            one.destroy()
            one.allocate()


def test_a_running_program_takes_no_standing_rule(start: Start) -> None:
    running = start(sys.executable, "-c", WAIT, options=(early(rules.Merge()),))
    assert running.line() == "up"
    merge = rules.Merge().to_json()
    asked: dict[str, object] = {"do": "rules", "queue": [1, 0], "rules": [merge]}
    assert running.ask(asked) == {"error": "merge: only in force from the boundary's start on"}
    assert running.ask({**asked, "rules": []}) == {"left": []}


@pytest.mark.parametrize(
    "line",
    [
        '{"time": 1}',
        "[" * 100_000,
        '{"time": 1, "queue": [1, 0], "id": 7, "did": "pass", "arrived": 1, "got": [0, ""]}',
        '{"time": 1, "queue": [1, 0], "id": 7, "did": "pass", "arrived": 1, "got": [2, "AAAA"]}',
        '{"time": 1, "queue": [1, 0], "id": 7, "did": "pass", "arrived": "now", "got": ["AAAA"]}',
    ],
    ids=["fields", "deep", "no records", "parts of records", "no time"],
)
def test_a_log_of_somebody_else_is_refused(line: str) -> None:
    told = re.escape(f"not a line of a boundary's log: {line[:200]!r}")
    with pytest.raises(ValueError, match=told):
        entries([line])
