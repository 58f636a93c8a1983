"""The iommufd boundary on a lab host: starts QEMU and stands between it and the kernel.

    python3 boundary.pyz CONTROL LOG [--reads] [--rules JSON] -- QEMU ARGUMENT...

QEMU runs under a seccomp filter. For each IOMMU_VEVENTQ_ALLOC the queue's file stays here and QEMU
gets one end of a SOCK_SEQPACKET pair, which carries one record a datagram: as QEMU reads records.
All else QEMU does itself. Records are taken from the kernel only while QEMU takes them from us (but
for those that a rule keeps), so an overflow is still the kernel's.

CONTROL is a listening socket's descriptor. It speaks JSON lines, an answer to each request:

    {"do": "rules", "queue": [TYPE, SLOT], "rules": [...]}   the rules that were left: {"left": []}
    {"do": "release", "queue": [TYPE, SLOT]}                 ends a hold
    {"do": "status"}                                         the queues, and what waits

A queue's slot counts those of its type that live: the first is 0. LOG gets one JSON line for each
decision, once it was carried out, and for each call. When QEMU ends this ends with its status; when
this ends QEMU is killed: a QEMU that nobody answers would hang.

Sent to the host as a zip: standard library only, Python 3.9.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

from harness.faults import rules, seccomp
from harness.faults.relay import Lane, Log, Queue, use
from harness.faults.rules import Address, Call, Rule
from harness.faults.script import Decision
from harness.faults.seccomp import GoneError, Listener, Notification, UnsupportedError
from harness.smmu.vevents import QueueType, split

DESTROY = 0x3B80
#: struct iommu_veventq_alloc: size, flags, viommu_id, type, depth, out id, out fd, reserved.
_VEVENTQ_ALLOC = struct.Struct("<8I")
_DEPTH, _OUT_FD = 16, 24
#: Where the type is in struct iommu_viommu_alloc.
_VIOMMU_TYPE = 8

#: In struct iommu_hw_info: data_len and data_uptr; the type of what is there. In what is there for
#: an SMMUv3 (struct iommu_hw_info_arm_smmuv3): the first of its identification registers.
_HW_INFO_LENGTH, _HW_INFO_DATA, _HW_INFO_TYPE = 12, "<IQ", 24
_HW_INFO_ARM_SMMUV3, _IDR0 = 2, 8

#: Records a read of ours takes at most: what we hold besides the kernel's queue.
BATCH = 64
#: EX_CONFIG of sysexits.h: this host cannot have a boundary.
CANNOT = 78


class Boundary:
    """All state of the supervisor. One thread, which only ever waits in `run`."""

    def __init__(self, listener: Listener, control: socket.socket, log: Log, reads: bool) -> None:
        self.listener, self.control, self.log, self.reads = listener, control, log, reads
        self.lanes: dict[Address, Lane] = {}
        self.queues: dict[int, Queue] = {}  # by the kernel's id
        self.selector = selectors.DefaultSelector()
        self.clients: dict[socket.socket, bytes] = {}

    def lane(self, address: Address) -> Lane:
        return self.lanes.setdefault(address, Lane())

    def queue_at(self, address: Address) -> Queue | None:
        return next((one for one in self.queues.values() if one.address == address), None)

    # -- the loop --------------------------------------------------------------------------

    def run(self, pid: int) -> int:
        """Until process `pid` ends; its wait status."""
        ended = os.pidfd_open(pid)
        self.selector.register(ended, selectors.EVENT_READ, lambda: None)
        self.selector.register(self.listener, selectors.EVENT_READ, self.serve_call)
        self.selector.register(self.control, selectors.EVENT_READ, self.accept)
        while ended not in self.turn():
            pass
        return self._farewell(pid)

    def turn(self) -> list[int]:
        """Wait for whatever comes next and see to it; the descriptors that were ready."""
        ready = self.selector.select(self._patience())
        for key, _ in ready:
            # An earlier one of this turn may have closed it.
            if key.fd in self.selector.get_map():
                key.data()
        self._carry_on()
        self.log.flush()
        return [key.fd for key, _ in ready]

    def _patience(self) -> float | None:
        dues = [due for queue in self.queues.values() if (due := queue.next_due()) is not None]
        return max(0.0, min(dues) - time.time()) if dues else None

    def _carry_on(self) -> None:
        """Deliver what became due."""
        now = time.time()
        for queue in self.queues.values():
            due = queue.next_due()
            if due is not None and due <= now:
                self.advance(queue)

    def _farewell(self, pid: int) -> int:
        _, status = os.waitpid(pid, 0)
        now = time.time()
        for queue in self.queues.values():
            for decision in queue.outbox:
                self.log.decision(queue, decision, now, "undelivered")
        self.log.flush()
        return status

    # -- records ---------------------------------------------------------------------------

    def adopt(self, queue: Queue) -> None:
        """Relay a queue's records from now on."""
        self.queues[queue.id] = queue
        self.selector.register(queue.ours, selectors.EVENT_READ, lambda: self.hear(queue))
        self._watch(queue)
        self.advance(queue)

    def take(self, queue: Queue) -> None:
        """The kernel has records."""
        try:
            data = os.read(queue.real, BATCH * queue.kind.record_bytes)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            return  # another read was faster; so says an empty queue
        now, records = time.time(), split(data, queue.kind)
        queue.received += len(records)
        if queue.script.idle:
            queue.script.passed(records[-1])
            whole = tuple(records)
            queue.outbox.append(Decision(rules.Pass.name, whole, whole, now, now))
        else:
            queue.script.feed(records, now)
        self.advance(queue)

    def advance(self, queue: Queue) -> None:
        """Decide and deliver all that can be."""
        now = time.time()
        queue.outbox.extend(queue.script.decide(now))
        was_blocked = queue.blocked
        try:
            for done in queue.deliver(now):
                self.log.decision(queue, done, time.time())
        except OSError:  # QEMU has closed its end, or had before
            self.hang_up(queue)
            return
        if queue.blocked != was_blocked:
            self._watch(queue)

    def _watch(self, queue: Queue) -> None:
        """Wait for QEMU while it does not take records, else for the kernel."""
        with contextlib.suppress(KeyError):
            self.selector.unregister(queue.real)
        events = selectors.EVENT_READ
        if queue.blocked:
            events |= selectors.EVENT_WRITE
        else:
            self.selector.register(queue.real, selectors.EVENT_READ, lambda: self.take(queue))
        self.selector.modify(queue.ours, events, lambda: self.hear(queue))

    def hear(self, queue: Queue) -> None:
        """QEMU took records, or closed its end."""
        try:
            closed = not queue.ours.recv(1)
        except BlockingIOError:
            closed = False
        except ConnectionResetError:
            closed = True
        if closed:
            self.hang_up(queue)
        else:
            self.advance(queue)

    def hang_up(self, queue: Queue) -> None:
        """QEMU closed the queue; it still has to destroy it."""
        for end in (queue.real, queue.ours):
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(end)
        for decision in queue.outbox:
            self.log.decision(queue, decision, time.time(), "undelivered")
        queue.outbox.clear()
        queue.at_qemu = -1
        queue.ours.close()

    # -- calls -----------------------------------------------------------------------------

    def serve_call(self) -> None:
        try:
            call = self.listener.receive()
            try:
                self._serve(call)
            except OSError as problem:
                self.listener.answer(call, problem.errno or errno.EIO)
        except GoneError:
            pass  # the caller was killed meanwhile

    def _serve(self, call: Notification) -> None:
        if not call.is_ioctl:
            self._serve_read(call)
        elif call.request == Call.VEVENTQ_ALLOC:
            self._allocate(call)
        elif call.request == DESTROY:
            self._destroy(call)
        elif call.request == Call.GET_HW_INFO:
            self._tell_of_host(call)
        else:
            self._maybe_fail(call)

    def _serve_read(self, call: Notification) -> None:
        for queue in self.queues.values():
            if queue.at_qemu == call.args[0]:
                rule = use(self.lane(queue.address).reads, rules.InterruptRead)
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
            rule = use(self.lane(address).calls, rules.FailAlloc, call=what)
        if rule is None:
            self.listener.let_through(call)
            return
        self.log.call(what.name, address, rule.name, rule.errno)
        self.listener.answer(call, rule.errno)

    def _tell_of_host(self, call: Notification) -> None:
        """Ask the kernel in QEMU's place, and hand its answer on with a register changed."""
        address = Address(QueueType.ARM_SMMUV3)
        rule = use(self.lane(address).calls, rules.HostIdr)
        if rule is None:
            self.listener.let_through(call)
            return
        where = call.args[2]
        (size,) = struct.unpack("<I", self._memory(call, where, 4))
        fields = bytearray(self._memory(call, where, size))
        length, theirs = struct.unpack_from(_HW_INFO_DATA, fields, _HW_INFO_LENGTH)
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
        memory = self.listener.open_memory(call)
        try:
            os.pwrite(memory, data.raw, theirs)
            os.pwrite(memory, fields, where)
        finally:
            os.close(memory)
        self.log.call(Call.GET_HW_INFO.name, address, rule.name, 0)
        self.listener.answer(call)

    def _allocate(self, call: Notification) -> None:
        fields = bytearray(self._memory(call, call.args[2], _VEVENTQ_ALLOC.size))
        _, _, viommu, number, depth, _, _, _ = _VEVENTQ_ALLOC.unpack(fields)
        if number not in list(QueueType):
            self.listener.let_through(call)
            return
        kind = QueueType(number)
        taken = {queue.slot for queue in self.queues.values() if queue.kind is kind}
        address = Address(kind, next(slot for slot in itertools.count() if slot not in taken))
        what = Call.VEVENTQ_ALLOC.name
        rule = use(self.lane(address).calls, rules.FailAlloc, call=Call.VEVENTQ_ALLOC)
        if rule:
            self.log.call(what, address, rule.name, rule.errno, viommu=viommu, depth=depth)
            self.listener.answer(call, rule.errno)
            return
        other = use(self.lane(address).calls, rules.Depth)
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
                queue = self._stand_between(call, fields, address, identity, real, depth)
            except (OSError, GoneError):
                # Whoever asked does not know of it, and may ask again.
                os.close(real)
                fcntl.ioctl(iommufd, DESTROY, struct.pack("<II", 8, identity))
                raise
        finally:
            os.close(iommufd)
        self.log.call(what, address, did, 0, viommu=viommu, depth=depth, id=identity)
        self.adopt(queue)

    def _stand_between(
        self,
        call: Notification,
        fields: bytearray,
        address: Address,
        identity: int,
        real: int,
        depth: int,
    ) -> Queue:
        """Keep the kernel's file, give QEMU a socket for it, and answer the call."""
        os.set_blocking(real, False)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                at_qemu = self.listener.add_descriptor(call, theirs.fileno())
            struct.pack_into("<I", fields, _OUT_FD, at_qemu)
            memory = self.listener.open_memory(call)
            try:
                os.pwrite(memory, fields, call.args[2])
            finally:
                os.close(memory)
            self.listener.answer(call)
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        kind, slot = address
        script = self.lane(address).script
        return Queue(kind, slot, identity, depth, real, ours, at_qemu, script)

    def _destroy(self, call: Notification) -> None:
        _, identity = struct.unpack("<II", self._memory(call, call.args[2], 8))
        queue = self.queues.pop(identity, None)
        if queue is None:
            self.listener.let_through(call)
            return
        self.hang_up(queue)
        busy = use(self.lane(queue.address).calls, rules.BusyOnDestroy)
        if not busy:
            os.close(queue.real)
        error = 0
        iommufd = seccomp.take_descriptor(call.tid, call.args[0])
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
        memory = self.listener.open_memory(call)
        try:
            return os.pread(memory, size, address)
        finally:
            os.close(memory)

    # -- control ---------------------------------------------------------------------------

    def accept(self) -> None:
        client, _ = self.control.accept()
        client.settimeout(5)
        self.clients[client] = b""
        self.selector.register(client, selectors.EVENT_READ, lambda: self.listen_to(client))

    def listen_to(self, client: socket.socket) -> None:
        try:
            data = client.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(client)
            del self.clients[client]
            client.close()
            return
        *lines, self.clients[client] = (self.clients[client] + data).split(b"\n")
        for line in lines:
            try:
                answer = self.obey(json.loads(line))
            except (ValueError, TypeError, KeyError) as problem:
                answer = {"error": f"{problem}"}
            with contextlib.suppress(OSError):
                client.sendall(json.dumps(answer).encode() + b"\n")

    def obey(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked, wholly or not at all. Raises ValueError."""
        verb = request.get("do")
        if verb == "status":
            return self.status()
        address = Address.from_json(request.get("queue"))
        if verb == "rules":
            new = [rules.from_json(one) for one in request["rules"]]
            return {"left": [rule.to_json() for rule in self.load(address, new)]}
        if verb == "release":
            queue = self.queue_at(address)
            if queue is None:
                raise ValueError(f"no queue {address} now")
            queue.script.release()
            self.advance(queue)
            return {}
        raise ValueError(f"no such request: {verb!r}")

    def load(self, address: Address, new: Sequence[Rule], early: bool = False) -> list[Rule]:
        """Replace an address's rules; those left. Raises ValueError for one that cannot be."""
        queue = self.queue_at(address)
        for rule in new:
            rules.check_fits(rule, address[0])
            if isinstance(rule, rules.InterruptRead) and not self.reads:
                raise ValueError(f"{rule.name}: this boundary does not supervise reads")
            if queue is None and not early and not isinstance(rule, rules.CALL_RULES):
                raise ValueError(f"{rule.name}: there is no queue {address} now")
        left = self.lane(address).load(new)
        if queue:
            self.advance(queue)
            self.log.flush()
        return left

    def status(self) -> dict[str, Any]:
        queues = [
            {
                "queue": list(queue.address),
                "id": queue.id,
                "depth": queue.depth,
                "received": queue.received,
                "delivered": queue.delivered,
                "waiting": queue.script.waiting + len(queue.outbox),
                "left": [rule.to_json() for rule in queue.script.left],
            }
            for queue in self.queues.values()
        ]
        return {"queues": queues}


def main() -> None:
    parser = argparse.ArgumentParser(prog="boundary", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("control", type=int, help="descriptor of a listening socket")
    parser.add_argument("log", help="file that the log is added to")
    parser.add_argument("--reads", action="store_true", help="supervise reads of queues too")
    parser.add_argument("--rules", default="[]", help='[{"queue": [TYPE, SLOT], "rules": […]}]')
    parser.add_argument("argv", nargs="+", help="QEMU and its arguments, after --")
    options = parser.parse_args()
    control = socket.socket(fileno=options.control)
    control.set_inheritable(False)
    try:
        sizes = [kind.record_bytes for kind in QueueType] if options.reads else []
        pid, listener = seccomp.start(options.argv, [*Call, DESTROY], sizes, keep=control.fileno())
    except UnsupportedError as problem:
        sys.stderr.write(f"boundary: {problem}\n")
        sys.exit(CANNOT)
    boundary = Boundary(listener, control, Log(options.log), options.reads)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    try:
        for early in json.loads(options.rules):
            new = [rules.from_json(one) for one in early["rules"]]
            boundary.load(Address.from_json(early["queue"]), new, early=True)
        status = boundary.run(pid)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)
