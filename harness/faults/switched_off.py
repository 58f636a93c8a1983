"""Turn a guest's SMMU, or one of its queues, off and on again behind its driver's back.

Source: Arm IHI 0070, sections 6.3.9 (CR0) and 6.3.10 (CR0ACK).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.guest.event_queue import EventQueue
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, until32, write32
from harness.smmu.registers import CR0, CR0_CMDQEN, CR0_EVENTQEN, CR0_SMMUEN, CR0ACK

_ENABLES = CR0_SMMUEN | CR0_EVENTQEN | CR0_CMDQEN


@contextlib.contextmanager
def switched_off(guest: Guest, queue: EventQueue, enable: int) -> Iterator[None]:
    """Clear an enable bit of CR0 of the SMMU that a queue belongs to while the body runs:
    CR0_SMMUEN, CR0_EVENTQEN or CR0_CMDQEN. If the body raises, the bit stays cleared.

    The guest's driver does not know of it: it sends no command that usually goes with the change.
    Errors are those of Guest.run.
    """
    before = queue.register(CR0)
    _write(guest, queue, before & ~enable)
    yield
    _write(guest, queue, before)


def _write(guest: Guest, queue: EventQueue, value: int) -> None:
    """Write CR0, and wait until the SMMU has taken the value."""
    taken = until32(queue.base + CR0ACK, _ENABLES, value & _ENABLES)
    Mmio(guest).run(write32(queue.base + CR0, value), taken)
