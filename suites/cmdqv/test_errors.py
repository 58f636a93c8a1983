"""A command that fails is reported to the guest's driver, which recovers the queue."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures.guests import WITH_CMDQV
from harness.errors import ProductError
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.host import Host, Silicon
from harness.smmu.cmdqv import Config, Page0, QueueError
from harness.smmu.commands import Command, Opcode, atc_inv, sync
from harness.smmu.trace import TraceEvent
from harness.waiting import wait_for

#: What the guest's driver logs for each error (drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c).
LOGGED = {
    QueueError.ILLEGAL: "Illegal command",
    QueueError.ABORT: "Abort on command fetch",
    QueueError.ATC_INV_SYNC: "ATC invalidate timeout",
}
#: Commands that no guest may issue, and the StreamID of a device that the guest does not have.
CFGI_STE: Command = (Opcode.CFGI_STE, 0)
TLBI_EL2_ALL: Command = (Opcode.TLBI_EL2_ALL, 0)
TLBI_S12_VMALL: Command = (Opcode.TLBI_S12_VMALL, 0)
NO_DEVICE = 0xFFFF

pytestmark = [
    pytest.mark.needs("cmdqv"),
    pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED),
]


def error_maps(guest: Guest, since: int) -> list[str]:
    """Return the error maps that QEMU received: a set bit is a logical queue in error."""
    return [text.split()[-1] for text in guest.trace(since).texts(TraceEvent.CMDQV_ERR_MAP)]


def wait_for_map(guest: Guest, since: int, lvcmdq: int) -> None:
    """Wait until QEMU has received the error map in which only this logical queue is in error."""
    expected = f"0000:0000:0000:{1 << lvcmdq:04X}"
    wait_for(
        f"QEMU to hear of an error of LVCMDQ {lvcmdq}",
        lambda: expected in error_maps(guest, since),
        deadline=10,
        error=ProductError,
        last_seen=lambda: error_maps(guest, since),
    )


@pytest.mark.covers("CQV-07")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.parametrize("error", list(LOGGED), ids=lambda error: error.name)
@pytest.mark.parametrize("lvcmdq", [0, 1])
def test_an_error_reaches_the_driver_and_the_queue_works_again(
    guest: Guest,
    host: Host,
    silicon: Silicon,
    write_blocks: Callable[[int, int], None],
    lvcmdq: int,
    error: QueueError,
) -> None:
    before, reported = guest.trace_size(), guest.kernel_log("CMDQ error").count(LOGGED[error])
    (vintf,) = {vintf for vintf, *_ in silicon.commands()[-1:]}
    logged = host.kernel_log_time()
    silicon.inject(vintf, lvcmdq, error)

    write_blocks(lvcmdq, 4)  # CPU n issues its commands to logical queue n

    wait_for_map(guest, before, lvcmdq)
    assert guest.kernel_log("CMDQ error").count(LOGGED[error]) == reported + 1
    assert "unexpected error reported" in host.kernel_log(logged)
    done = silicon.count()
    write_blocks(lvcmdq, 4)
    assert silicon.count() > done
    cmdqv = GuestCmdqv(guest)
    registers = (Page0.GERROR, Page0.GERRORN)
    gerror, gerrorn = (cmdqv.read(cmdqv.page0(lvcmdq, one)) for one in registers)
    assert gerror == gerrorn


@pytest.mark.covers("CQV-15")
@pytest.mark.parametrize(
    "command",
    [CFGI_STE, TLBI_EL2_ALL, TLBI_S12_VMALL, atc_inv(NO_DEVICE)],
    ids=["CFGI_STE", "TLBI_EL2_ALL", "TLBI_S12_VMALL", "ATC_INV-of-no-device"],
)
def test_what_a_guest_may_not_command_is_refused(
    guest: Guest, write_blocks: Callable[[int, int], None], command: Command
) -> None:
    cmdqv, queue = GuestCmdqv(guest), 1
    before = guest.trace_size()
    reported = guest.kernel_log("CMDQ error").count(LOGGED[QueueError.ILLEGAL])

    index = cmdqv.give(queue, command, sync())
    wait_for_map(guest, before, queue)
    cmdqv.wait_done(queue)  # the driver has replaced the command that failed
    cmdqv.take_back(queue, index)

    assert guest.kernel_log("CMDQ error").count(LOGGED[QueueError.ILLEGAL]) == reported + 1
    write_blocks(queue, 4)


@pytest.mark.covers("CQV-08")
def test_a_masked_error_is_not_signalled(
    guest: Guest, write_blocks: Callable[[int, int], None]
) -> None:
    """While its interrupt is masked, an error is in the registers but the driver is not called."""

    def signalled() -> int:
        counts = guest.run("grep tegra241-cmdqv /proc/interrupts").text.split()
        return sum(int(word) for word in counts[1:3])

    cmdqv, queue = GuestCmdqv(guest), 1
    interrupts, before = signalled(), guest.trace_size()
    cmdqv.write(Config.VINTF_INT_MASK, 1)

    index = cmdqv.give(queue, CFGI_STE)
    wait_for_map(guest, before, queue)
    assert signalled() == interrupts
    assert cmdqv.read(Config.VINTF_ERR_MAP) == 1
    gerror = cmdqv.read(cmdqv.page0(queue, Page0.GERROR))
    assert gerror != cmdqv.read(cmdqv.page0(queue, Page0.GERRORN))

    # The driver was not called, so the test clears the error. The next error must be signalled.
    cmdqv.write(cmdqv.page0(queue, Page0.CONFIG), 0)
    cmdqv.write(cmdqv.page0(queue, Page0.GERRORN), gerror)
    cmdqv.take_back(queue, index)
    cmdqv.write(Config.VINTF_INT_MASK, 0)
    index = cmdqv.give(queue, CFGI_STE, sync())
    cmdqv.wait_done(queue)
    cmdqv.take_back(queue, index)
    assert signalled() == interrupts + 1
    write_blocks(queue, 4)
