"""Insert commands into the command queue of a guest's SMMU behind the driver's back.

Source: Arm IHI 0070, sections 3.5.1 (circular queues), 6.3.9 (CR0), 6.3.26 to 6.3.28.
"""

from __future__ import annotations

from harness.guest.event_queue import EventQueue
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, Op, until32, write32, write64
from harness.smmu.commands import Command, cmdq_ring, words_at
from harness.smmu.registers import (
    CMDQ_BASE,
    CMDQ_CONS,
    CMDQ_CONS_RD,
    CMDQ_PROD,
    CR0,
    CR0_CMDQEN,
    CR0_EVENTQEN,
)


def carry_out(guest: Guest, queue: EventQueue, *commands: Command) -> None:
    """Make a guest's SMMU execute commands that its driver does not know of, then set the queue's
    registers back to the values that the driver expects.

    The guest must not use its command queue meanwhile. Errors are those of Guest.run.
    """
    prod, cons = queue.base + CMDQ_PROD, queue.base + CMDQ_CONS
    before = queue.register(CMDQ_PROD)
    ops, after = _append(queue, before, commands)
    Mmio(guest).run(
        *ops,
        write32(prod, after),
        until32(cons, CMDQ_CONS_RD, after),
        # CONS first: a write of PROD makes the SMMU execute what is between the two.
        write32(cons, before),
        write32(prod, before),
    )


def restart_queues(guest: Guest, queue: EventQueue, *commands: Command) -> None:
    """Stop a guest's command and event queues, append commands, and start both queues with one
    write of CR0, so that the SMMU has to handle the commands and the event queue at the same time.

    The guest must not use its command queue meanwhile, and no other test can use the guest after
    this. Errors are those of Guest.run.
    """
    cr0, queues = queue.register(CR0), CR0_CMDQEN | CR0_EVENTQEN
    ops, after = _append(queue, queue.register(CMDQ_PROD), commands)
    Mmio(guest).run(
        *ops,
        write32(queue.base + CR0, cr0 & ~queues),
        write32(queue.base + CMDQ_PROD, after),
        write32(queue.base + CR0, cr0 | queues),
    )


def _append(queue: EventQueue, prod: int, commands: tuple[Command, ...]) -> tuple[list[Op], int]:
    """Return the operations that write commands at PROD, and the value of PROD after them."""
    ring = cmdq_ring(queue.register(CMDQ_BASE, 8))
    ops = [write64(at, word) for at, word in words_at(ring, prod, commands)]
    return ops, ring.after(prod, len(commands))
