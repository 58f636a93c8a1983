"""Commands for the emulated SMMU that nobody in the machine gave: invalidations that guest-owned
command queues ask for.

QEMU's SMMU caches translations and forgets them by its command queue only, which belongs to the
kernel in the machine. So that queue is borrowed: for a moment its registers point to a queue of our
own. The machine runs on meanwhile. That is safe because

* a CPU reaches a register only with QEMU's big lock, which `Qtest.at_once` holds from its first
  command to its last: within one such step nobody sees or changes anything;
* between our steps the queue is disabled (CR0.CMDQEN), so that a PROD that the kernel writes stays
  and is not acted on. QEMU acts on it when the queue is enabled again: it was late, not lost;
* between our steps BASE and CONS have the kernel's values: it polls CONS, and sees what it should;
* a PROD of the kernel's that one of our steps overwrites was read by that very step before, and is
  written back by the next one, which again reads what it overwrites, until nothing new turns up.
  The last step enables the queue and writes no PROD. The kernel never reads PROD, and each of its
  CPUs waits for its commands to be done before it gives the next, so this ends soon;
* the kernel writes CR0 only to bring the SMMU up or down, when no guest has a queue.

Our queue is memory of the machine that its kernel gave to the CMDQV for VINTF0 and, booted with
arm_smmu_v3.bypass_vcmdq=1, never uses.

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

#: Rounds in which the kernel may give new commands before something must be wrong.
PATIENCE = 100


class WritableMemory(Protocol):
    def write(self, address: int, data: bytes) -> None: ...


class SmmuCommands:
    """The command queue of one SMMU, borrowed a batch at a time."""

    def __init__(self, qtest: Qtest, base: int, memory: WritableMemory) -> None:
        self._qtest, self._base, self._memory = qtest, base, memory

    def carry_out(self, commands: Sequence[Command], ours: Ring) -> None:
        """Have the SMMU carry commands out; done when this returns. `ours` is where in the
        machine's memory our queue may be, aligned to its size. Raises HarnessError when the SMMU
        does not take a command."""
        room = ours.entries - 1
        for start in range(0, len(commands), room):
            self._batch(commands[start : start + room], ours)

    def _batch(self, commands: Sequence[Command], ours: Ring) -> None:
        assert len(commands) < ours.entries
        self._memory.write(ours.address, encode(commands))

        (cr0,) = self._at_once(self._read(CR0))
        if not cr0 & CR0_CMDQEN:
            return  # an SMMU whose queue is off has been reset: it caches nothing
        disabled, enabled = cr0 & ~CR0_CMDQEN, cr0
        base, cons, prod = self._at_once(
            self._write(CR0, disabled),
            self._read(CMDQ_BASE, "q"),
            self._read(CMDQ_CONS),
            self._read(CMDQ_PROD),
        )
        latest, done, gerror, gerrorn = self._at_once(
            self._read(CMDQ_PROD),
            self._write(CMDQ_BASE, ours.base, "q"),
            self._write(CMDQ_CONS, 0),
            self._write(CMDQ_PROD, len(commands)),
            self._write(CR0, enabled),  # it works them off here
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
        """Have PROD be what the kernel wrote last. `written` is what we wrote last, `latest` the
        kernel's of which we know."""
        for _ in range(PATIENCE):
            if latest == written:
                return
            (found,) = self._at_once(self._read(CMDQ_PROD), self._write(CMDQ_PROD, latest))
            # What stood there was ours, or it was newer than what we put in its place.
            written, latest = latest, latest if found == written else found
        raise HarnessError("the kernel gives commands without waiting for them")

    def _at_once(self, *commands: str) -> list[int]:
        return self._qtest.at_once(*commands)

    def _read(self, register: int, width: str = "l") -> str:
        return f"read{width} {self._base + register:#x}"

    def _write(self, register: int, value: int, width: str = "l") -> str:
        return f"write{width} {self._base + register:#x} {value:#x}"
