"""Have the emulated SMMU carry out the invalidations of guest-owned command queues.

QEMU's SMMU drops cached translations only at commands in its command queue, which belongs to the
kernel in the machine. So these commands borrow it: for a moment its registers point to a scratch
queue. The machine runs on meanwhile. That is safe because

* a CPU reaches a register only with QEMU's big lock, which `Qtest.at_once` holds from its first
  command to its last: during one such step no CPU sees or changes a register;
* between steps the queue is disabled (CR0.CMDQEN), so that a PROD that the kernel writes stays and
  is not acted on. QEMU acts on it when the queue is enabled again: late, but it is not lost;
* between steps BASE and CONS have the kernel's values, so that a kernel that polls CONS reads the
  right value;
* a step that overwrites a PROD of the kernel's reads it first, and the next step writes it back and
  again reads what it overwrites, until that is nothing new. The last step enables the queue and
  does not write PROD. The kernel never reads PROD, and each of its CPUs waits for its commands to
  be done before it gives the next, so that this soon ends;
* the kernel writes CR0 only to bring the SMMU up or down, when no guest has a queue.

The scratch queue is memory of the machine that its kernel gave to the CMDQV for VINTF0 and, booted
with arm_smmu_v3.bypass_vcmdq=1, never uses.

Register offsets and CR0: Arm IHI 0070, section 6.3. QEMU: hw/arm/smmuv3.c, smmu_writel and
smmuv3_cmdq_consume; system/qtest.c, qtest_process_inbuf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from harness.errors import HarnessError
from harness.smmu.commands import Command, encode
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
from harness.virtual.qtest import Qtest

#: Steps in which the kernel may write a new PROD, before this is taken for an error.
MOST_STEPS = 100


class WritableMemory(Protocol):
    def write(self, address: int, data: bytes) -> None: ...


class SmmuCommands:
    """The command queue of one SMMU, which is borrowed for a batch of commands at a time."""

    def __init__(self, qtest: Qtest, base: int, memory: WritableMemory) -> None:
        self._qtest, self._base, self._memory = qtest, base, memory

    def carry_out(self, commands: Sequence[Command], scratch: Ring) -> None:
        """Have the SMMU carry out commands; return when it has. `scratch` is the queue in the
        machine's memory to use for them, aligned to its size. Raises HarnessError when the SMMU
        does not carry one out."""
        room = scratch.entries - 1
        for start in range(0, len(commands), room):
            self._batch(commands[start : start + room], scratch)

    def _batch(self, commands: Sequence[Command], scratch: Ring) -> None:
        assert len(commands) < scratch.entries
        self._memory.write(scratch.address, encode(commands))

        (cr0,) = self._at_once(self._read(CR0))
        if not cr0 & CR0_CMDQEN:
            return  # an SMMU whose queue is disabled was reset: it caches nothing
        disabled, enabled = cr0 & ~CR0_CMDQEN, cr0
        base, cons, prod = self._at_once(
            self._write(CR0, disabled),
            self._read(CMDQ_BASE, "q"),
            self._read(CMDQ_CONS),
            self._read(CMDQ_PROD),
        )
        latest, done, gerror, gerrorn = self._at_once(
            self._read(CMDQ_PROD),
            self._write(CMDQ_BASE, scratch.base, "q"),
            self._write(CMDQ_CONS, 0),
            self._write(CMDQ_PROD, len(commands)),
            self._write(CR0, enabled),  # QEMU carries out the commands here
            self._read(CMDQ_CONS),
            self._read(GERROR),
            self._read(GERRORN),
            self._write(CR0, disabled),
            self._write(CMDQ_BASE, base, "q"),
            self._write(CMDQ_CONS, cons),
            self._write(CMDQ_PROD, prod),
        )
        self._give_back(prod, latest)
        self._at_once(self._write(CR0, enabled))
        if done != len(commands):
            raise HarnessError(
                f"the SMMU took {done:#x} of {len(commands)} commands, "
                f"GERROR {gerror:#x}, GERRORN {gerrorn:#x}"
            )

    def _give_back(self, written: int, latest: int) -> None:
        """Set PROD to the value that the kernel wrote last. `written` is the value that the last
        step wrote, `latest` the latest known value of the kernel's."""
        for _ in range(MOST_STEPS):
            if latest == written:
                return
            (found,) = self._at_once(self._read(CMDQ_PROD), self._write(CMDQ_PROD, latest))
            # The value found is the last step's, or it is the kernel's and newer than `latest`.
            written, latest = latest, latest if found == written else found
        raise HarnessError("the kernel gives commands without waiting for them")

    def _at_once(self, *commands: str) -> list[int]:
        return self._qtest.at_once(*commands)

    def _read(self, register: int, width: str = "l") -> str:
        return f"read{width} {self._base + register:#x}"

    def _write(self, register: int, value: int, width: str = "l") -> str:
        return f"write{width} {self._base + register:#x} {value:#x}"
