"""The state of a guest's command queues."""

from __future__ import annotations

from harness.faults.guest_cmdqv import GuestCmdqv
from harness.guest.guest import Guest
from harness.guest.pages import pin_page
from harness.smmu.cmdqv import ENABLE, INIT_ERR, Page0
from harness.smmu.commands import COMMAND_BYTES, sync
from harness.smmu.ring import Ring
from harness.smmu.trace import TraceEvent

#: The command queues of a guest.
QUEUES = range(2)
#: A ring of 256 commands takes a page.
LOG2SIZE = 8
#: Why QEMU does not let go of the device that brought a guest its CMDQV.
BLOCKED = (
    "CMDQV is active: removing the device that established the viommu association would break "
    "the guest CMDQV"
)


def enabled(cmdqv: GuestCmdqv) -> bool:
    """Return whether all logical queues of a guest are enabled."""
    return all(cmdqv.read(cmdqv.page0(queue, Page0.STATUS)) & ENABLE for queue in QUEUES)


def acknowledged(cmdqv: GuestCmdqv, lvcmdq: int) -> bool:
    """Return whether the guest's driver has acknowledged all errors of a logical queue."""
    registers = (Page0.GERROR, Page0.GERRORN)
    gerror, gerrorn = (cmdqv.read(cmdqv.page0(lvcmdq, one)) for one in registers)
    return gerror == gerrorn


def failed(cmdqv: GuestCmdqv, lvcmdq: int) -> bool:
    """Return whether QEMU reports that a logical queue could not be set up."""
    return bool(cmdqv.read(cmdqv.trapped(lvcmdq, Page0.GERROR)) & INIT_ERR)


def hardware_queues(guest: Guest) -> dict[int, int]:
    """Return the address of the ring of each hardware queue that QEMU has for a guest, by the
    number of the logical queue."""
    alive: dict[int, tuple[int, int]] = {}
    for line in guest.trace().named(TraceEvent.ALLOC_HW_QUEUE, TraceEvent.FREE_ID):
        if not line.succeeded:
            continue
        if line.name == TraceEvent.FREE_ID:
            alive.pop(line.number("id"), None)
        else:
            alive[line.number("queue_id")] = line.number("index"), line.number("addr")
    return dict(alive.values())


def new_ring(guest: Guest, log2size: int = LOG2SIZE) -> Ring:
    """Return a ring in a page of its own."""
    return Ring(pin_page(guest), log2size, COMMAND_BYTES)


def check_works(guest: Guest, lvcmdq: int) -> None:
    """Check that the hardware takes commands from a logical queue that the test has set up, and
    meets no error there."""
    cmdqv = GuestCmdqv(guest)
    cmdqv.give(lvcmdq, sync(), sync())
    cmdqv.wait_done(lvcmdq)
    assert acknowledged(cmdqv, lvcmdq)
