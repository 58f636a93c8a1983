"""A model of the Tegra241 CMDQV: it carries out the commands in its queues.

Its registers are in registers.py. Commands: Arm IHI 0070, chapter 4.

The model has no threads and no I/O of its own. Its caller passes it register accesses; it reads
queues through `ReadableMemory` and calls `Surroundings`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from harness.smmu.cmdqv import ENABLE, QueueError
from harness.smmu.commands import Command, Opcode, decode, opcode
from harness.virtual.silicon.registers import Parameters, Registers, Vcmdq, Vintf

_U32 = 0xFFFF_FFFF
#: The most commands that one turn of a queue carries out, so that another queue has its turn soon,
#: and a register is never locked for long.
MOST_AT_ONCE = 1024
#: The BASE of a queue whose owner is gone: no memory that a machine has.
_FORMER_BASE = 0xDEAD_0000_0000 | 3


class ReadableMemory(Protocol):
    """The machine's memory. `read` raises AbortedError where there is none."""

    def read(self, address: int, size: int) -> bytes: ...


class Surroundings(Protocol):
    """What the model needs of the process that runs it."""

    def doorbell(self, queue: Vcmdq) -> None:
        """Take note that a queue has commands, and have `Cmdqv.process` called for it once, later
        and not from within this call."""

    def invalidate(self, commands: Sequence[Command]) -> None:
        """Have the SMMU carry out these commands; return when it has. Raises AbortedError if the
        memory for that has gone."""

    def carried_out(
        self, queue: Vcmdq, commands: Sequence[Command], issued: Sequence[Command | None]
    ) -> None:
        """Take note that these commands of a queue were carried out: for each of them, the SMMU got
        the one of `issued`, or nothing. Called with the model's lock held, before the queue's owner
        can see it."""

    def interrupt(self) -> None:
        """Raise the interrupt that signals an error."""


class AbortedError(Exception):
    """A queue is at an address without memory, or of memory that cannot be accessed."""


class Cmdqv:
    """The device. Its registers may be accessed while `process` runs in another thread. Who holds
    `lock` sees registers, and commands that were carried out, as they were at one time."""

    def __init__(
        self, parameters: Parameters, memory: ReadableMemory, around: Surroundings
    ) -> None:
        self.registers, self.memory, self._around = Registers(parameters), memory, around
        self.lock = threading.RLock()

    def reset(self) -> None:
        with self.lock:
            self.registers.reset()

    def read(self, offset: int, size: int) -> int:
        """Read a register of 4 bytes, or two adjacent ones at once (`size` 8). An offset without a
        register reads as 0."""
        with self.lock:
            low = self.registers.read(offset)
            return low if size == 4 else low | self.registers.read(offset + 4) << 32

    def write(self, offset: int, size: int, value: int) -> None:
        with self.lock:
            self._write(offset, value & _U32)
            if size == 8:
                self._write(offset + 4, value >> 32)

    def _write(self, offset: int, value: int) -> None:
        queue = self.registers.write(offset, value)
        if queue:
            self._ring(queue)

    def _ring(self, queue: Vcmdq) -> None:
        """Have the queue's next turn come if it has commands, and none is due yet."""
        if not queue.rung and queue.pending and self.registers.runs(queue):
            queue.rung = True
            self._around.doorbell(queue)

    def inject(self, vintf: int, lvcmdq: int, error: QueueError) -> None:
        """Make the next command of a logical queue fail with `error`; disabling the queue cancels
        that. Raises LookupError when no such queue is allocated, ValueError for QueueError.NONE."""
        if error is QueueError.NONE:
            raise ValueError("NONE is no error")
        with self.lock:
            queue = self.registers.find(vintf, lvcmdq)
            if queue is None:
                raise LookupError(f"VINTF {vintf} has no LVCMDQ {lvcmdq}")
            queue.injected = error

    def leave_dirty(self) -> int:
        """Have all queues that are not allocated look as an owner may leave them that ended amid an
        error: enabled, with commands that were not taken, and with an error that was not
        acknowledged. Return how many these are."""
        with self.lock:
            queues = [queue for queue in self.registers.vcmdqs if not queue.allocated]
            for queue in queues:
                queue.config, queue.cons, queue.prod = ENABLE, 3, 7
                queue.base, queue.gerrorn = _FORMER_BASE, queue.gerror
                queue.fail(QueueError.ILLEGAL)
            return len(queues)

    def process(self, queue: Vcmdq) -> None:
        """Carry out a queue's commands, MOST_AT_ONCE at most; ring for another turn if more are
        left. CONS moves only when the SMMU has carried them out.

        Surroundings that may wait for a CPU are called without the lock held: a CPU may wait for a
        register.
        """
        with self.lock:
            queue.rung = False
            if not self.registers.runs(queue) or not queue.pending:
                return
            start, base = queue.cons, queue.base
            commands, error = self._take(queue)
            vintf = self.registers.vintfs[queue.vintf]
            issued = self._translate(vintf, commands)
            done = len(issued)
            if done < len(commands):
                error = QueueError.ILLEGAL
        forwarded = [command for command in issued if command]
        if forwarded:
            try:
                self._around.invalidate(forwarded)
            except AbortedError:
                done, error = 0, QueueError.ABORT
        with self.lock:
            if (queue.cons, queue.base) != (start, base) or not self.registers.runs(queue):
                return  # the queue was reset meanwhile: its new state is another queue's
            self._around.carried_out(queue, commands[:done], issued[:done])
            queue.cons = queue.ring.after(start, done)
            if error:
                queue.injected = QueueError.NONE
                queue.fail(error)
            signal = error and not self.registers.masked(queue)
            self._ring(queue)
        if signal:
            self._around.interrupt()

    def _take(self, queue: Vcmdq) -> tuple[list[Command], QueueError]:
        """Return the commands of this turn that can be read, and the error that the command after
        them meets.

        PROD may be further ahead than the ring is long, though its owner must not move it so (IHI
        0070, section 6.3.27). Then commands inside the ring are taken again until CONS is there: a
        guest harms nobody but itself.
        """
        if queue.injected:
            return [], queue.injected
        ring = queue.ring
        count = min(queue.pending, ring.entries, MOST_AT_ONCE)
        end = ring.after(queue.cons, count)
        commands: list[Command] = []
        for address, size in ring.ranges(queue.cons, end):
            try:
                data = self.memory.read(address, size)
            except AbortedError:
                return commands, QueueError.ABORT
            commands += decode(data)
        return commands, QueueError.NONE

    @staticmethod
    def _translate(vintf: Vintf, commands: Sequence[Command]) -> list[Command | None]:
        """Return, for each of a guest's commands before the first that is illegal in its queue, the
        command that the SMMU must carry out, with the guest's VMID and physical StreamIDs in it;
        None for one that the SMMU need not know of."""
        out: list[Command | None] = []
        for low, high in commands:
            kind = opcode(low)
            if kind in (Opcode.TLBI_NH_ASID, Opcode.TLBI_NH_VA):
                out.append((low & ~(0xFFFF << 32) | vintf.vmid << 32, high))
            elif kind == Opcode.ATC_INV:
                sid = vintf.physical_sid(low >> 32)
                if sid is None:
                    return out
                out.append((low & _U32 | sid << 32, high))
            elif kind == Opcode.SYNC and not vintf.hyp_own:
                out.append(None)
            else:
                # A hypervisor's queue has no commands: its kernel runs with bypass_vcmdq=1.
                return out
        return out
