"""The Tegra241 CMDQV as a model: what becomes of the commands in its queues.

Its registers: `cmdqv_registers`. Commands: Arm IHI 0070, chapter 4.

The model has no threads and no I/O of its own. It is told of register accesses, reads queues
through `ReadableMemory`, and calls `Surroundings`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from harness.smmu.cmdqv import QueueError
from harness.smmu.commands import Command, Opcode, decode, opcode
from harness.virtual.silicon.registers import Parameters, Registers, Vcmdq, Vintf

_U32 = 0xFFFF_FFFF


class ReadableMemory(Protocol):
    """The machine's memory. Raises AbortedError where there is none."""

    def read(self, address: int, size: int) -> bytes: ...


class Surroundings(Protocol):
    """What the model needs of whoever runs it."""

    def doorbell(self, queue: Vcmdq) -> None:
        """A queue has work: have `process` called, later and not from within this call."""

    def invalidate(self, commands: Sequence[Command]) -> None:
        """Have the SMMU carry commands out before this returns."""

    def carried_out(self, queue: Vcmdq, commands: Sequence[Command]) -> None:
        """A queue's commands were done."""

    def interrupt(self) -> None:
        """Signal an error."""


class AbortedError(Exception):
    """A queue lies where no memory is."""


class Cmdqv:
    """The device. Register accesses may come while `process` runs in another thread."""

    def __init__(
        self, parameters: Parameters, memory: ReadableMemory, around: Surroundings
    ) -> None:
        self.registers, self.memory, self._around = Registers(parameters), memory, around
        self._lock = threading.RLock()

    def reset(self) -> None:
        with self._lock:
            self.registers.reset()

    def read(self, offset: int, size: int) -> int:
        """A register of 4 bytes, or two that lie beside each other. What is none reads as 0."""
        with self._lock:
            low = self.registers.read(offset)
            return low if size == 4 else low | self.registers.read(offset + 4) << 32

    def write(self, offset: int, size: int, value: int) -> None:
        with self._lock:
            self._write(offset, value & _U32)
            if size == 8:
                self._write(offset + 4, value >> 32)

    def _write(self, offset: int, value: int) -> None:
        queue = self.registers.write(offset, value)
        if queue and self.registers.runs(queue) and queue.pending:
            self._around.doorbell(queue)

    def inject(self, vintf: int, lvcmdq: int, error: QueueError) -> None:
        """Have the next command of a logical queue meet an error; forgotten when the queue is
        disabled. Raises LookupError when no such queue is allocated, ValueError for no error."""
        if error is QueueError.NONE:
            raise ValueError("NONE is no error")
        with self._lock:
            queue = self.registers.find(vintf, lvcmdq)
            if queue is None:
                raise LookupError(f"VINTF {vintf} has no LVCMDQ {lvcmdq}")
            queue.injected = error

    def process(self, queue: Vcmdq) -> None:
        """Carry out what a queue holds: the SMMU has done it all before CONS moves.

        Surroundings are called without the lock: they may wait for CPUs that wait for a register.
        """
        while True:
            with self._lock:
                if not self.registers.runs(queue) or not queue.pending:
                    return
                start, base = queue.cons, queue.base
                commands, error = self._take(queue)
                vintf = self.registers.vintfs[queue.vintf]
                forwarded, done = self._translate(vintf, commands)
                if done < len(commands):
                    error = QueueError.ILLEGAL
            if forwarded:
                self._around.invalidate(forwarded)
            with self._lock:
                if (queue.cons, queue.base) != (start, base) or not self.registers.runs(queue):
                    return  # it was reset meanwhile: what was read is history
                queue.cons = queue.ring.after(start, done)
                if error:
                    queue.injected = QueueError.NONE
                    queue.fail(error)
                signal = error and not self.registers.masked(queue)
            self._around.carried_out(queue, commands[:done])
            if signal:
                self._around.interrupt()

    def _take(self, queue: Vcmdq) -> tuple[list[Command], QueueError]:
        """The commands from CONS on that can be had, and the error that the next one meets."""
        if queue.injected:
            return [], queue.injected
        ring = queue.ring
        # A PROD that is further ahead than the ring is long is reached in several turns.
        end = ring.after(queue.cons, min(queue.pending, ring.entries))
        commands: list[Command] = []
        for address, size in ring.ranges(queue.cons, end):
            try:
                data = self.memory.read(address, size)
            except AbortedError:
                return commands, QueueError.ABORT
            commands += decode(data)
        return commands, QueueError.NONE

    @staticmethod
    def _translate(vintf: Vintf, commands: Sequence[Command]) -> tuple[list[Command], int]:
        """What the SMMU has to do for a guest's commands, with the guest's VMID and its devices'
        StreamIDs; and how many there are before the first that a guest's queue refuses."""
        out: list[Command] = []
        for index, (low, high) in enumerate(commands):
            kind = opcode(low)
            if kind in (Opcode.TLBI_NH_ASID, Opcode.TLBI_NH_VA):
                out.append((low & ~(0xFFFF << 32) | vintf.vmid << 32, high))
            elif kind == Opcode.ATC_INV:
                sid = vintf.physical_sid(low >> 32)
                if sid is None:
                    return out, index
                out.append((low & _U32 | sid << 32, high))
            elif kind != Opcode.SYNC or vintf.hyp_own:
                # A hypervisor's own commands do not come here: it runs with bypass_vcmdq.
                return out, index
        return out, len(commands)
