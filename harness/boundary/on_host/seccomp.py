"""Supervise a process's system calls with seccomp user notification.

The caller's process is the supervisor; a child installs the filter on itself and passes the
listener to its parent. This works on any kernel since 5.19 (WAIT_KILLABLE_RECV), without changes to
the supervised program. Sources: seccomp_unotify(2), include/uapi/linux/seccomp.h.

Part of the boundary's program on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class _Machine:
    """The numbers that differ between architectures (asm/unistd.h, linux/audit.h)."""

    audit: int
    ioctl: int
    mmap: int
    read: int
    seccomp: int


_MACHINES = {
    "aarch64": _Machine(0xC00000B7, 29, 222, 63, 277),
    "x86_64": _Machine(0xC000003E, 16, 9, 0, 317),
}
# These numbers are the same on all architectures.
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

_SET_MODE_FILTER = 1
_NEW_LISTENER, _WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
_RET_USER_NOTIF, _RET_ALLOW = 0x7FC0_0000, 0x7FFF_0000

_RECV, _SEND, _ID_VALID, _ADDFD = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103
_FLAG_CONTINUE = 1

_NOTIFICATION = struct.Struct("<QIIiIQ6Q")  # struct seccomp_notif
_RESPONSE = struct.Struct("<QqiI")  # struct seccomp_notif_resp
_ADD = struct.Struct("<QIIII")  # struct seccomp_notif_addfd

# Offsets in struct seccomp_data.
_NR, _ARCH, _ARGS = 0, 4, 16
_LOAD, _RETURN = 0x20, 0x06  # BPF_LD|W|ABS, BPF_RET|K
_EQUAL, _ANY_BIT = 0x15, 0x45  # BPF_JMP|JEQ|K, BPF_JMP|JSET|K


class UnsupportedError(Exception):
    """This host cannot supervise system calls; the text says why, and what would help."""


def machine() -> _Machine:
    """Return this machine's numbers. Raises UnsupportedError for an unknown architecture."""
    name = platform.machine()
    if name not in _MACHINES:
        raise UnsupportedError(f"machine {name} is not supported, only {', '.join(_MACHINES)}")
    return _MACHINES[name]


@dataclass(frozen=True)
class Supervised:
    """The system calls that a filter notifies of: these `ioctls`, reads of exactly `read_sizes`
    bytes, and, with `mappings`, each mmap that shares a file's memory. A process seldom maps files
    so, and is not slowed when it allocates memory."""

    ioctls: Sequence[int]
    read_sizes: Sequence[int] = ()
    mappings: bool = False


def _filter(supervised: Supervised) -> bytes:
    """Return the BPF program that notifies of these calls."""
    here = machine()
    notify, allow = (_RETURN, _RET_USER_NOTIF), (_RETURN, _RET_ALLOW)
    program: list[tuple[int, int, int, int]] = []

    def load(offset: int) -> None:
        program.append((_LOAD, 0, 0, offset))

    def unless_equal_skip(value: int, skip: int) -> None:
        program.append((_EQUAL, 0, skip, value))

    def give(what: tuple[int, int]) -> None:
        program.append((what[0], 0, 0, what[1]))

    load(_ARCH)
    program.append((_EQUAL, 1, 0, here.audit))
    give(allow)
    for number, argument, values in (
        (here.ioctl, 1, supervised.ioctls),
        (here.read, 2, supervised.read_sizes),
    ):
        if values:
            load(_NR)
            unless_equal_skip(number, 2 + 2 * len(values))
            load(_ARGS + 8 * argument)  # the argument's lower half, as it is little endian
            for value in values:
                unless_equal_skip(value, 1)
                give(notify)
            give(allow)
    if supervised.mappings:
        load(_NR)
        unless_equal_skip(here.mmap, 4)
        load(_ARGS + 8 * 3)  # the flags
        program.append((_ANY_BIT, 2, 0, mmap.MAP_ANONYMOUS))
        program.append((_ANY_BIT, 0, 1, mmap.MAP_SHARED))
        give(notify)
    give(allow)
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(supervised: Supervised) -> int:
    """Put this process, and every program that it executes, under the filter; return the listener's
    descriptor. Raises UnsupportedError if the kernel cannot do it."""
    program = _filter(supervised)
    buffer = ctypes.create_string_buffer(program, len(program))
    passed = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p).value)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    flags = _NEW_LISTENER | _WAIT_KILLABLE_RECV
    listener: int = _libc.syscall(machine().seccomp, _SET_MODE_FILTER, flags, ctypes.byref(passed))
    if listener < 0:
        code = ctypes.get_errno()
        why = {
            errno.EINVAL: f"kernel {platform.release()} is too old: Linux 5.19 or newer, with "
            "CONFIG_SECCOMP_FILTER, is needed",
            errno.ENOSYS: f"kernel {platform.release()} has no CONFIG_SECCOMP_FILTER",
            errno.EBUSY: "another supervisor supervises this process already",
        }.get(code, os.strerror(code))
        raise UnsupportedError(f"seccomp user notification: {why}")
    return listener


@dataclass(frozen=True)
class Notification:
    """A system call that waits for our answer. `tid` is the id of the calling thread."""

    id: int
    tid: int
    number: int
    args: tuple[int, ...]

    @property
    def is_read(self) -> bool:
        """Return whether the call is read(2)."""
        return self.number == machine().read

    @property
    def is_mmap(self) -> bool:
        """Return whether the call is mmap(2)."""
        return self.number == machine().mmap

    @property
    def request(self) -> int:
        """Return the request number of an ioctl."""
        return self.args[1] & 0xFFFF_FFFF


class GoneError(Exception):
    """The caller does not wait any more, because it was killed."""


class Listener:
    """Receives notifications and answers them."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def fileno(self) -> int:
        """Return the descriptor, which selectors use."""
        return self.descriptor

    def receive(self) -> Notification:
        """Return the next call. Raises GoneError if its caller was killed before that."""
        buffer = bytearray(_NOTIFICATION.size)
        self._ioctl(_RECV, buffer)
        identity, tid, _, number, _, _, *args = _NOTIFICATION.unpack(buffer)
        return Notification(identity, tid, number, tuple(args))

    def let_through(self, call: Notification) -> None:
        """Let the kernel execute the call. Raises GoneError if the caller was killed."""
        self._ioctl(_SEND, bytearray(_RESPONSE.pack(call.id, 0, 0, _FLAG_CONTINUE)))

    def answer(self, call: Notification, error: int = 0) -> None:
        """Answer the call with success, or an errno, without executing it. Raises GoneError if the
        caller was killed."""
        self._ioctl(_SEND, bytearray(_RESPONSE.pack(call.id, 0, -error, 0)))

    def add_descriptor(self, call: Notification, ours: int) -> int:
        """Give the caller a copy of one of our descriptors, which is closed on exec; return its
        number there. Raises GoneError if the caller was killed."""
        flags = os.O_CLOEXEC
        return self._ioctl(_ADDFD, bytearray(_ADD.pack(call.id, 0, ours, 0, flags)))

    def open_memory(self, call: Notification) -> int:
        """Return a descriptor of the caller's memory: /proc/TID/mem. Raises GoneError if the caller
        was killed."""
        memory = os.open(f"/proc/{call.tid}/mem", os.O_RDWR)
        try:
            # Only a check after the open shows that the id is still that of the caller's thread.
            self._ioctl(_ID_VALID, bytearray(struct.pack("<Q", call.id)))
        except BaseException:
            os.close(memory)
            raise
        return memory

    def _ioctl(self, request: int, buffer: bytearray) -> int:
        while True:
            try:
                returned: int = fcntl.ioctl(self.descriptor, request, buffer, True)
                return returned
            except InterruptedError:
                continue
            except OSError as problem:
                if problem.errno == errno.ENOENT:
                    raise GoneError from None
                raise


def take_descriptor(tid: int, number: int) -> int:
    """Return our copy of descriptor `number` of another process. Raises OSError; EPERM if we have
    no ptrace rights."""
    process: int = _libc.syscall(_PIDFD_OPEN, _process_of(tid), 0)
    if process < 0:
        raise OSError(ctypes.get_errno(), "pidfd_open")
    try:
        ours: int = _libc.syscall(_PIDFD_GETFD, process, number, 0)
        if ours < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return ours
    finally:
        os.close(process)


def _process_of(tid: int) -> int:
    with Path(f"/proc/{tid}/status").open() as status:
        for line in status:
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    raise OSError(errno.ESRCH, f"thread {tid} is gone")


def check_rights(pid: int) -> None:
    """Raise UnsupportedError unless we have the rights to supervise a process: to copy its
    descriptors, and to read and write its memory."""
    try:
        os.close(take_descriptor(pid, 0))
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))
    except OSError as problem:
        raise UnsupportedError(
            f"no right to access the process (ptrace): {problem}; run as root, and check "
            "kernel.yama.ptrace_scope and the host's security modules"
        ) from None


# -- a child under the filter ----------------------------------------------------------------


def start(argv: Sequence[str], supervised: Supervised, *, keep: int) -> tuple[int, Listener]:
    """Start a program under the filter, if we can supervise it; return its process id and listener.

    It inherits our descriptors except `keep`, which must not be inheritable. We close all others:
    otherwise, after the program has ended, a client of its sockets would wait for us. The program
    is killed when we end. Raises UnsupportedError; the program has not run then.
    """
    inherited = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        os._exit(_become(argv, theirs, supervised))
    theirs.close()
    try:
        message, descriptors, _, _ = socket.recv_fds(ours, 4096, 1)
        if not descriptors:
            raise UnsupportedError(message.decode() or "the child ended at once")
        check_rights(pid)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    ours.send(b"go")
    ours.close()
    for number in inherited - {0, 1, 2, keep}:
        with contextlib.suppress(OSError):
            os.close(number)
    return pid, Listener(descriptors[0])


def _become(argv: Sequence[str], parent: socket.socket, supervised: Supervised) -> int:
    """Become the program, in the child: install the filter, tell the parent, wait for it, exec.
    Return an exit status if that fails."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        listener = install(supervised)
    except UnsupportedError as problem:
        parent.send(str(problem).encode())
        return 1
    socket.send_fds(parent, [b"ready"], [listener])
    os.close(listener)
    if not parent.recv(2):
        return 1
    try:
        os.execvp(argv[0], list(argv))
    except OSError as problem:
        sys.stderr.write(f"{argv[0]}: {problem.strerror}\n")
    return 127
