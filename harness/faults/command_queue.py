"""Commands that a guest's SMMU finds in its command queue without the driver's doing.

Arm IHI 0070, sections 3.5.1 (circular queues), 4.3.1 (CMD_CFGI_STE), 6.3.9 (CR0), 6.3.26 to 6.3.28.
"""

from __future__ import annotations

import shlex

from harness.guest.event_queue import EventQueue
from harness.guest.guest import Guest
from harness.smmu.queue import CR0, CR0_EVENTQEN

CMDQ_BASE, CMDQ_PROD, CMDQ_CONS = 0x90, 0x98, 0x9C
CR0_CMDQEN = 1 << 3
COMMAND_BYTES = 16
_ADDRESS = ((1 << 52) - 1) & ~0x1F

Command = tuple[int, int]


def cfgi_ste(sid: int) -> Command:
    """CMD_CFGI_STE with Leaf: the STE of a StreamID has changed."""
    return (0x03 | sid << 32, 1)


def tlbi_nh_asid(asid: int) -> Command:
    """CMD_TLBI_NH_ASID: what is cached of an address space. QEMU puts the VMID in."""
    return (0x11 | asid << 48, 0)


def carry_out(guest: Guest, queue: EventQueue, *commands: Command) -> None:
    """Have a guest's SMMU do commands that its driver does not know of, and leave the queue as the
    driver knows it. The guest must not use its command queue meanwhile."""
    prod = queue.register(CMDQ_PROD)
    entries, ops = _entries(queue, prod, commands)
    after = (prod + len(commands)) % (2 * entries)
    cons = queue.base + CMDQ_CONS
    ops += [
        f"w32:{queue.base + CMDQ_PROD:#x}={after:#x}",
        f"until32:{cons:#x}&0xfffff={after:#x}",
        # The consumer first: a queue is worked off when its producer is written.
        f"w32:{cons:#x}={prod:#x}",
        f"w32:{queue.base + CMDQ_PROD:#x}={prod:#x}",
    ]
    guest.run(shlex.join(["hil", "mmio", "/dev/mem", *ops]))


def _entries(queue: EventQueue, prod: int, commands: tuple[Command, ...]) -> tuple[int, list[str]]:
    """How many entries the command queue has, and the writes that put commands at PROD."""
    base = queue.register(CMDQ_BASE, 8)
    entries = 1 << (base & 0x1F)
    ops = []
    for number, words in enumerate(commands):
        entry = (base & _ADDRESS) + (prod + number) % entries * COMMAND_BYTES
        ops += [f"w64:{entry + 8 * index:#x}={word:#x}" for index, word in enumerate(words)]
    return entries, ops


def restart_queues(guest: Guest, queue: EventQueue, *commands: Command) -> None:
    """Stop a guest's command and event queues, append commands, and start both queues by one write
    of CR0: the SMMU then has the commands and the event queue to see to at the same time.

    The guest must not use its command queue meanwhile; spoils it for other tests.
    """
    prod, cr0 = queue.register(CMDQ_PROD), queue.register(CR0)
    entries, ops = _entries(queue, prod, commands)
    after = (prod + len(commands)) % (2 * entries)
    ops += [
        f"w32:{queue.base + CR0:#x}={cr0 & ~(CR0_CMDQEN | CR0_EVENTQEN):#x}",
        f"w32:{queue.base + CMDQ_PROD:#x}={after:#x}",
        f"w32:{queue.base + CR0:#x}={cr0 | CR0_CMDQEN | CR0_EVENTQEN:#x}",
    ]
    guest.run(shlex.join(["hil", "mmio", "/dev/mem", *ops]))
