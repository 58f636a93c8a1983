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


def restart_queues(guest: Guest, queue: EventQueue, *commands: Command) -> None:
    """Stop a guest's command and event queues, append commands, and start both queues by one write
    of CR0: the SMMU then has the commands and the event queue to see to at the same time.

    The guest must not use its command queue meanwhile; spoils it for other tests.
    """
    base = queue.register(CMDQ_BASE, 8)
    entries = 1 << (base & 0x1F)
    prod, cr0 = queue.register(CMDQ_PROD), queue.register(CR0)
    ops = []
    for number, words in enumerate(commands):
        entry = (base & _ADDRESS) + (prod + number) % entries * COMMAND_BYTES
        ops += [f"w64:{entry + 8 * index:#x}={word:#x}" for index, word in enumerate(words)]
    after = (prod + len(commands)) % (2 * entries)
    ops += [
        f"w32:{queue.base + CR0:#x}={cr0 & ~(CR0_CMDQEN | CR0_EVENTQEN):#x}",
        f"w32:{queue.base + CMDQ_PROD:#x}={after:#x}",
        f"w32:{queue.base + CR0:#x}={cr0 | CR0_CMDQEN | CR0_EVENTQEN:#x}",
    ]
    guest.run(shlex.join(["hil", "mmio", "/dev/mem", *ops]))
