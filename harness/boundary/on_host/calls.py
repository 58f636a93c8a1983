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
import struct
from collections.abc import Iterator
from pathlib import Path

from harness.boundary.on_host import rules, seccomp
from harness.boundary.on_host.queues import Queues
from harness.boundary.on_host.relay import Log, Queue, connected, consume
from harness.boundary.on_host.rules import Address, Call, FailCall, HostIdr, RefuseInvalidation
from harness.boundary.on_host.seccomp import GoneError, Listener, Notification
from harness.smmu.vevents import QueueType

DESTROY = 0x3B80
#: struct iommu_veventq_alloc: size, flags, viommu_id, type, depth, out id, out fd, reserved.
_VEVENTQ_ALLOC = struct.Struct("<8I")
_DEPTH, _OUT_FD = 16, 24
#: The offset of the type in struct iommu_viommu_alloc.
_VIOMMU_TYPE = 8

#: A flag in struct iommu_hwpt_alloc, the offset of the type of its data, and the type of an SMMUv3.
_NEST_PARENT = 1 << 0
_HWPT_DATA_TYPE, _HWPT_DATA_ARM_SMMUV3 = 24, 2

#: struct iommu_hwpt_invalidate: size, hwpt_id, data_uptr, data_type, entry_len, entry_num,
#: reserved; and the offset of entry_num, in which the kernel says how many it has processed.
_INVALIDATE = struct.Struct("<IIQ4I")
_ENTRY_NUM = 24

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
        # The iommufd of QEMU's last vIOMMU that has a page to map.
        self._iommufd: tuple[int, int] | None = None

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
        if call.is_read:
            self._serve_read(call)
        elif call.is_mmap:
            self._map(call)
        elif call.request == Call.VEVENTQ_ALLOC:
            self._allocate(call)
        elif call.request == DESTROY:
            self._destroy(call)
        elif call.request == Call.GET_HW_INFO:
            self._answer_hw_info(call)
        elif call.request == Call.HWPT_INVALIDATE:
            self._invalidate(call)
        elif call.request == Call.HWPT_ALLOC:
            self._allocate_hwpt(call)
        elif call.request == Call.VIOMMU_ALLOC:
            self._allocate_viommu(call)
        else:
            what = Call(call.request)
            if not self._failed(call, what, Address(what.kinds[0])):
                self.listener.let_through(call)

    def _serve_read(self, call: Notification) -> None:
        for queue in self.queues.by_id.values():
            if queue.at_qemu == call.args[0]:
                rule = consume(self.queues.rules_at(queue.address).reads, rules.InterruptRead)
                if rule:
                    self.log.call("read", queue.address, rule.name, rule.errno, id=queue.id)
                    self.listener.answer(call, rule.errno)
                    return
        self.listener.let_through(call)

    def _failed(self, call: Notification, what: Call, address: Address, **more: object) -> bool:
        """Answer a call with an error if a rule says so; return whether it does."""
        waiting = self.queues.rules_at(address).calls
        rule = consume(waiting, FailCall, lambda one: one.call is what)
        if rule is None:
            return False
        self.log.call(what.name, address, rule.name, rule.errno, **more)
        self.listener.answer(call, rule.errno)
        return True

    def _allocate_viommu(self, call: Notification) -> None:
        (number,) = struct.unpack("<I", self._memory(call, call.args[2] + _VIOMMU_TYPE, 4))
        if number in list(QueueType):
            kind = QueueType(number)
            if self._failed(call, Call.VIOMMU_ALLOC, Address(kind)):
                return
            if kind in Call.MMAP.kinds:
                self._iommufd = _identity(call.tid, call.args[0])
        self.listener.let_through(call)

    def _map(self, call: Notification) -> None:
        """Answer a mapping of the iommufd of which QEMU got a vIOMMU with something to map."""
        what, (kind,) = Call.MMAP, Call.MMAP.kinds
        ours = self._iommufd is not None and self._iommufd == _identity(call.tid, call.args[4])
        if not ours or not self._failed(call, what, Address(kind)):
            self.listener.let_through(call)

    def _allocate_hwpt(self, call: Notification) -> None:
        where, what = call.args[2], None
        size, flags = struct.unpack("<II", self._memory(call, where, 8))
        if flags & _NEST_PARENT:
            what = Call.HWPT_ALLOC_NEST_PARENT
        elif size >= _HWPT_DATA_TYPE + 4:
            (kind,) = struct.unpack("<I", self._memory(call, where + _HWPT_DATA_TYPE, 4))
            what = Call.HWPT_ALLOC if kind == _HWPT_DATA_ARM_SMMUV3 else None
        if what is None or not self._failed(call, what, Address(what.kinds[0])):
            self.listener.let_through(call)

    def _invalidate(self, call: Notification) -> None:
        """Refuse a batch of invalidations, of which the kernel may be given the beginning."""
        address, where = Address(QueueType.ARM_SMMUV3), call.args[2]
        waiting = self.queues.rules_at(address).calls
        if not waiting:
            self.listener.let_through(call)  # without a look at QEMU's memory
            return
        fields = bytearray(self._memory(call, where, _INVALIDATE.size))
        size, _, _, _, length, total, _ = _INVALIDATE.unpack(fields)
        sound = size >= _INVALIDATE.size and length <= _PAGE  # else the kernel says what is wrong
        rule: FailCall | RefuseInvalidation | None = consume(
            waiting, FailCall, lambda one: one.call is Call.HWPT_INVALIDATE
        ) or consume(waiting, RefuseInvalidation, lambda one: sound and one.processed < total)
        if rule is None:
            self.listener.let_through(call)
            return
        error, processed = rule.errno, 0
        if isinstance(rule, RefuseInvalidation) and rule.processed:
            error, processed = self._invalidate_first(call, fields, rule.processed)
            error = error or rule.errno
        self._set_memory(call, where + _ENTRY_NUM, struct.pack("<I", processed))
        self.log.call(
            Call.HWPT_INVALIDATE.name, address, rule.name, error, entries=total, processed=processed
        )
        self.listener.answer(call, error)

    def _invalidate_first(
        self, call: Notification, fields: bytearray, count: int
    ) -> tuple[int, int]:
        """Have the kernel process the first `count` entries of a batch; return its error, or 0, and
        how many it has processed."""
        _, hwpt, theirs, kind, length, _, reserved = _INVALIDATE.unpack(fields)
        entries = ctypes.create_string_buffer(self._memory(call, theirs, count * length))
        here = ctypes.addressof(entries)
        _INVALIDATE.pack_into(
            fields, 0, _INVALIDATE.size, hwpt, here, kind, length, count, reserved
        )
        iommufd, error = seccomp.take_descriptor(call.tid, call.args[0]), 0
        try:
            fcntl.ioctl(iommufd, Call.HWPT_INVALIDATE, fields, True)
        except OSError as problem:
            error = problem.errno or errno.EIO
        finally:
            os.close(iommufd)
        return error, struct.unpack_from("<I", fields, _ENTRY_NUM)[0]

    def _changes_of_host(self, address: Address) -> list[HostIdr]:
        """Use up a count of the first rule for each register, and return these rules."""
        waiting, changed = self.queues.rules_at(address).calls, set[int]()
        changes: list[HostIdr] = []
        while rule := consume(waiting, HostIdr, lambda one: one.register not in changed):
            changed.add(rule.register)
            changes.append(rule)
        return changes

    def _answer_hw_info(self, call: Notification) -> None:
        """Ask the kernel in QEMU's place, and pass its answer on with a register changed."""
        address = Address(QueueType.ARM_SMMUV3)
        if self._failed(call, Call.GET_HW_INFO, address):
            return
        changes = self._changes_of_host(address)
        if not changes:
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
        for rule in changes:
            at = _IDR0 + 4 * rule.register
            if kind == _HW_INFO_ARM_SMMUV3 and at + 4 <= length:
                (value,) = struct.unpack_from("<I", data, at)
                struct.pack_into("<I", data, at, value & ~rule.clear | rule.set)
        self._set_memory(call, theirs, data.raw)
        self._set_memory(call, where, fields)
        self.log.call(Call.GET_HW_INFO.name, address, HostIdr.name, 0)
        self.listener.answer(call)

    def _allocate(self, call: Notification) -> None:
        where = call.args[2]
        (size,) = struct.unpack("<I", self._memory(call, where, 4))
        if not _VEVENTQ_ALLOC.size <= size <= _PAGE:
            self.listener.let_through(call)  # the kernel says what is wrong
            return
        # A newer QEMU may have more fields. The kernel reads and writes as many bytes as it says.
        fields = bytearray(self._memory(call, where, size))
        _, _, viommu, number, depth, _, _, _ = _VEVENTQ_ALLOC.unpack_from(fields)
        if number not in list(QueueType):
            self.listener.let_through(call)
            return
        kind = QueueType(number)
        taken = {queue.slot for queue in self.queues.by_id.values() if queue.kind is kind}
        address = Address(kind, next(slot for slot in itertools.count() if slot not in taken))
        what = Call.VEVENTQ_ALLOC.name
        if self._failed(call, Call.VEVENTQ_ALLOC, address, viommu=viommu, depth=depth):
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
        ours, theirs = connected()
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


def _identity(tid: int, number: int) -> tuple[int, int] | None:
    """Return what identifies the file of a thread's descriptor, or None if it has no such one."""
    try:
        file = Path(f"/proc/{tid}/fd/{number & 0xFFFF_FFFF}").stat()
    except OSError:
        return None
    return file.st_dev, file.st_ino


@contextlib.contextmanager
def _faulting() -> Iterator[None]:
    """Make OSError(EFAULT) of what an access to /proc/TID/mem fails with: EIO at an address without
    memory, and OverflowError at one that no file offset can have."""
    try:
        yield
    except (OSError, OverflowError) as problem:
        raise OSError(errno.EFAULT, str(problem)) from None
