"""Errors of a guest's command queues: how to cause one on any CMDQV, and who hears of it."""

from __future__ import annotations

from harness.errors import ProductError
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.guest.guest import Guest
from harness.host.host import Host
from harness.smmu.cmdqv import QueueError
from harness.smmu.commands import Command, Opcode, sync
from harness.smmu.trace import TraceEvent
from harness.waiting import wait_for
from suites.cmdqv.queues import acknowledged

#: What the guest's driver logs for each error (drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c).
LOGGED = {
    QueueError.ILLEGAL: "Illegal command",
    QueueError.ABORT: "Abort on command fetch",
    QueueError.ATC_INV_SYNC: "ATC invalidate timeout",
}
#: So many lines in so many seconds a kernel logs that limits them (linux/ratelimit_types.h).
LIMIT, LIMIT_SECONDS = 10, 5.0
#: A command that no guest may issue.
CFGI_STE: Command = (Opcode.CFGI_STE, 0)


def logged(guest: Guest, error: QueueError = QueueError.ILLEGAL) -> int:
    """Return how often the guest's driver has logged an error."""
    return guest.kernel_log("CMDQ error").count(LOGGED[error])


def host_tells(host: Host, after: float) -> bool:
    """Return whether the host's driver has logged an error after a time of its kernel log, or could
    not, because it has logged as many as it may (drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c; it
    is limited since 7.3)."""
    told = "unexpected error reported"
    recently = host.kernel_log(after - LIMIT_SECONDS).count(told)
    return told in host.kernel_log(after) or recently >= LIMIT


def error_map(lvcmdq: int) -> str:
    """Return the error map in which only this logical queue is in error, as QEMU traces it."""
    return f"0000:0000:0000:{1 << lvcmdq:04X}"


def error_maps(guest: Guest, since: int) -> list[str]:
    """Return the error maps that QEMU received: a set bit is a logical queue in error."""
    return [text.split()[-1] for text in guest.trace(since).texts(TraceEvent.CMDQV_ERR_MAP)]


def wait_for_map(guest: Guest, since: int, lvcmdq: int) -> None:
    """Wait until QEMU has received the error map in which only this logical queue is in error."""
    wait_for(
        f"QEMU to receive an error map of LVCMDQ {lvcmdq}",
        lambda: error_map(lvcmdq) in error_maps(guest, since),
        deadline=10,
        error=ProductError,
        last_seen=lambda: error_maps(guest, since),
    )


def check_refused(guest: Guest, lvcmdq: int, command: Command) -> None:
    """Check that the hardware refuses a command, that the guest's driver is told of it once, and
    that it has the queue go on."""
    cmdqv = GuestCmdqv(guest)
    before, reported = guest.trace_size(), logged(guest)
    index = cmdqv.give(lvcmdq, command, sync())
    wait_for_map(guest, before, lvcmdq)
    cmdqv.wait_done(lvcmdq)  # the driver has replaced the command that failed
    assert acknowledged(cmdqv, lvcmdq)
    cmdqv.take_back(lvcmdq, index)
    assert logged(guest) == reported + 1
