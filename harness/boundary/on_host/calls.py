"""Answer the iommufd calls of QEMU's that a boundary sees: let the kernel make them, fail them, or
make them in QEMU's place.

Part of the boundary's program on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import socket
import struct
from collections.abc import Iterator

from harness.boundary.on_host import rules, seccomp
from harness.boundary.on_host.queues import Queues
from harness.boundary.on_host.relay import Log, Queue, consume
from harness.boundary.on_host.rules import Address, Call
from harness.boundary.on_host.seccomp import GoneError, Listener, Notification
from harness.smmu.vevents import QueueType

DESTROY = 0x3B80
#: struct iommu_veventq_alloc: size, flags, viommu_id, type, depth, out id, out fd, reserved.
_VEVENTQ_ALLOC = struct.Struct("<8I")
_DEPTH, _OUT_FD = 16, 24
#: The offset of the type in struct iommu_viommu_alloc.
_VIOMMU_TYPE = 8

#: Offsets and layout in struct iommu_hw_info: data_len and data_uptr, and the type of the data. The
#: data of an SMMUv3 is a struct iommu_hw_info_arm_smmuv3, where _IDR0 is the offset of the first
#: identification register.
_HW_INFO_LENGTH, _HW_INFO_DATA, _HW_INFO_TYPE = 12, "<IQ", 24
_HW_INFO_LEAST = _HW_INFO_TYPE + 4
_HW_INFO_ARM_SMMUV3, _IDR0 = 2, 8
_PAGE = 4096


class Calls:
    """Serves calls one at a time, and hands each vEVENTQ that it allocates over to `queues`."""

    def __init__(self, listener: Listener, queues: Queues, log: Log) -> None:
        self.listener, self.queues, self.log = listener, queues, log

    def serve(self) -> None:
        """Receive the call that the kernel has announced, and answer it."""
        try:
            call = self.listener.receive()
            try:
                self._decide(call)
            except OSError as problem:
                self.listener.answer(call, problem.errno or errno.EIO)
        except GoneError:
            pass  # the caller was killed in the meantime

    def _decide(self, call: Notification) -> None:
        if not call.is_ioctl:
            self._serve_read(call)
        elif call.request == Call.VEVENTQ_ALLOC:
            self._allocate(call)
        elif call.request == DESTROY:
            self._destroy(call)
        elif call.request == Call.GET_HW_INFO:
            self._answer_hw_info(call)
        else:
            self._maybe_fail(call)

    def _serve_read(self, call: Notification) -> None:
        for queue in self.queues.by_id.values():
            if queue.at_qemu == call.args[0]:
                rule = consume(self.queues.rules_at(queue.address).reads, rules.InterruptRead)
                if rule:
                    self.log.call("read", queue.address, rule.name, rule.errno, id=queue.id)
                    self.listener.answer(call, rule.errno)
                    return
        self.listener.let_through(call)

    def _maybe_fail(self, call: Notification) -> None:
        what = Call(call.request)
        if what is Call.VIOMMU_ALLOC:
            (number,) = struct.unpack("<I", self._memory(call, call.args[2] + _VIOMMU_TYPE, 4))
        elif what is Call.HW_QUEUE_ALLOC:
            number = QueueType.TEGRA241_CMDQV  # the only kind of hardware queue there is
        else:
            number = QueueType.ARM_SMMUV3  # a vDEVICE is an SMMU's, with a CMDQV or without
        rule = None
        if number in list(QueueType):
            address = Address(QueueType(number))
            rule = consume(self.queues.rules_at(address).calls, rules.FailAlloc, call=what)
        if rule is None:
            self.listener.let_through(call)
            return
        self.log.call(what.name, address, rule.name, rule.errno)
        self.listener.answer(call, rule.errno)

    def _answer_hw_info(self, call: Notification) -> None:
        """Ask the kernel in QEMU's place, and pass its answer on with a register changed."""
        address = Address(QueueType.ARM_SMMUV3)
        rule = consume(self.queues.rules_at(address).calls, rules.HostIdr)
        if rule is None:
            self.listener.let_through(call)
            return
        where = call.args[2]
        (size,) = struct.unpack("<I", self._memory(call, where, 4))
        if not _HW_INFO_LEAST <= size <= _PAGE:
            self.listener.let_through(call)  # the kernel says what is wrong
            return
        fields = bytearray(self._memory(call, where, size))
        length, theirs = struct.unpack_from(_HW_INFO_DATA, fields, _HW_INFO_LENGTH)
        if length > _PAGE:
            self.listener.let_through(call)  # no version of the structure is that long
            return
        data = ctypes.create_string_buffer(length)
        struct.pack_into(_HW_INFO_DATA, fields, _HW_INFO_LENGTH, length, ctypes.addressof(data))
        iommufd = seccomp.take_descriptor(call.tid, call.args[0])
        try:
            fcntl.ioctl(iommufd, Call.GET_HW_INFO, fields, True)
        finally:
            os.close(iommufd)
        told, _ = struct.unpack_from(_HW_INFO_DATA, fields, _HW_INFO_LENGTH)
        struct.pack_into(_HW_INFO_DATA, fields, _HW_INFO_LENGTH, told, theirs)
        (kind,) = struct.unpack_from("<I", fields, _HW_INFO_TYPE)
        at = _IDR0 + 4 * rule.register
        if kind == _HW_INFO_ARM_SMMUV3 and at + 4 <= length:
            (value,) = struct.unpack_from("<I", data, at)
            struct.pack_into("<I", data, at, value & ~rule.clear | rule.set)
        self._set_memory(call, theirs, data.raw)
        self._set_memory(call, where, fields)
        self.log.call(Call.GET_HW_INFO.name, address, rule.name, 0)
        self.listener.answer(call)

    def _allocate(self, call: Notification) -> None:
        fields = bytearray(self._memory(call, call.args[2], _VEVENTQ_ALLOC.size))
        _, _, viommu, number, depth, _, _, _ = _VEVENTQ_ALLOC.unpack(fields)
        if number not in list(QueueType):
            self.listener.let_through(call)
            return
        kind = QueueType(number)
        taken = {queue.slot for queue in self.queues.by_id.values() if queue.kind is kind}
        address = Address(kind, next(slot for slot in itertools.count() if slot not in taken))
        what = Call.VEVENTQ_ALLOC.name
        rule = consume(
            self.queues.rules_at(address).calls, rules.FailAlloc, call=Call.VEVENTQ_ALLOC
        )
        if rule:
            self.log.call(what, address, rule.name, rule.errno, viommu=viommu, depth=depth)
            self.listener.answer(call, rule.errno)
            return
        other = consume(self.queues.rules_at(address).calls, rules.Depth)
        did, depth = (other.name, other.events) if other else ("pass", depth)
        struct.pack_into("<I", fields, _DEPTH, depth)
        iommufd = seccomp.take_descriptor(call.tid, call.args[0])
        try:
            try:
                fcntl.ioctl(iommufd, Call.VEVENTQ_ALLOC, fields, True)
            except OSError as problem:
                error = problem.errno or errno.EIO
                self.log.call(what, address, did, error, viommu=viommu, depth=depth)
                raise
            identity, real = struct.unpack_from("<II", fields, _OUT_FD - 4)
            try:
                queue = self._give_socket(call, fields, address, identity, real, depth)
            except (OSError, GoneError):
                # QEMU does not know of the queue, and may ask for it again.
                os.close(real)
                fcntl.ioctl(iommufd, DESTROY, struct.pack("<II", 8, identity))
                raise
        finally:
            os.close(iommufd)
        self.log.call(what, address, did, 0, viommu=viommu, depth=depth, id=identity)
        self.queues.adopt(queue)

    def _give_socket(
        self,
        call: Notification,
        fields: bytearray,
        address: Address,
        identity: int,
        real: int,
        depth: int,
    ) -> Queue:
        """Keep the kernel's file, give QEMU a socket instead, answer the call; return the queue."""
        os.set_blocking(real, False)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                at_qemu = self.listener.add_descriptor(call, theirs.fileno())
            struct.pack_into("<I", fields, _OUT_FD, at_qemu)
            self._set_memory(call, call.args[2], fields)
            self.listener.answer(call)
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        kind, slot = address
        at_address = self.queues.rules_at(address)
        return Queue(kind, slot, identity, depth, real, ours, at_qemu, at_address)

    def _destroy(self, call: Notification) -> None:
        _, identity = struct.unpack("<II", self._memory(call, call.args[2], 8))
        queue = self.queues.by_id.get(identity)
        if queue is None:
            self.listener.let_through(call)
            return
        iommufd = seccomp.take_descriptor(call.tid, call.args[0])
        del self.queues.by_id[identity]
        self.queues.hang_up(queue)
        busy = consume(self.queues.rules_at(queue.address).calls, rules.BusyOnDestroy)
        if not busy:
            os.close(queue.real)
        error = 0
        try:
            fcntl.ioctl(iommufd, DESTROY, struct.pack("<II", 8, identity))
        except OSError as problem:
            error = problem.errno or errno.EIO
        finally:
            os.close(iommufd)
            if busy:
                os.close(queue.real)
        did = busy.name if busy else "pass"
        self.log.call("DESTROY", queue.address, did, error, id=identity)
        self.listener.answer(call, error)

    def _memory(self, call: Notification, address: int, size: int) -> bytes:
        """Return memory of the caller's. Raises OSError(EFAULT), the kernel's answer, unless the
        caller has all of it."""
        memory = self.listener.open_memory(call)
        try:
            with _faulting():
                data = os.pread(memory, size, address)
        finally:
            os.close(memory)
        if len(data) < size:
            raise OSError(errno.EFAULT, f"{size} bytes at {address:#x}")
        return data

    def _set_memory(self, call: Notification, address: int, data: bytes | bytearray) -> None:
        """Write to memory of the caller's. Raises OSError(EFAULT) unless the caller has all of
        it."""
        memory = self.listener.open_memory(call)
        try:
            with _faulting():
                written = os.pwrite(memory, data, address)
        finally:
            os.close(memory)
        if written < len(data):
            raise OSError(errno.EFAULT, f"{len(data)} bytes at {address:#x}")


@contextlib.contextmanager
def _faulting() -> Iterator[None]:
    """Make OSError(EFAULT) of what an access to /proc/TID/mem fails with: EIO at an address without
    memory, and OverflowError at one that no file offset can have."""
    try:
        yield
    except (OSError, OverflowError) as problem:
        raise OSError(errno.EFAULT, str(problem)) from None
