"""A command that fails is reported to the guest's driver, which recovers the queue."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.expectation import only
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.fixtures.guests import WITH_CMDQV
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.host import Host, Silicon
from harness.smmu.cmdqv import Config, Page0, QueueError
from harness.smmu.commands import Command, Opcode, atc_inv, sync
from suites.cmdqv.errors import CFGI_STE, LOGGED, check_refused, host_tells, logged, wait_for_map
from suites.cmdqv.queues import acknowledged

#: Commands that no guest may issue, and the StreamID of a device that the guest does not have.
TLBI_EL2_ALL: Command = (Opcode.TLBI_EL2_ALL, 0)
TLBI_S12_VMALL: Command = (Opcode.TLBI_S12_VMALL, 0)
NO_DEVICE = 0xFFFF

pytestmark = [
    pytest.mark.needs("cmdqv"),
    pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED),
]


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
    before, reported = guest.trace_size(), logged(guest, error)
    vintf = only("interfaces in use", {vintf for vintf, *_ in silicon.commands()[-1:]})
    host_before = host.kernel_log_time()
    silicon.inject(vintf, lvcmdq, error)

    write_blocks(lvcmdq, 4)  # CPU n issues its commands to logical queue n

    wait_for_map(guest, before, lvcmdq)
    assert logged(guest, error) == reported + 1
    assert host_tells(host, host_before)
    done = silicon.count()
    write_blocks(lvcmdq, 4)
    assert silicon.count() > done
    assert acknowledged(GuestCmdqv(guest), lvcmdq)


@pytest.mark.covers("CQV-15", "CQV-07")
@pytest.mark.parametrize("lvcmdq", [0, 1])
@pytest.mark.parametrize(
    "command",
    [CFGI_STE, TLBI_EL2_ALL, TLBI_S12_VMALL, atc_inv(NO_DEVICE)],
    ids=["CFGI_STE", "TLBI_EL2_ALL", "TLBI_S12_VMALL", "ATC_INV-of-no-device"],
)
def test_what_a_guest_may_not_command_is_refused(
    guest: Guest, write_blocks: Callable[[int, int], None], lvcmdq: int, command: Command
) -> None:
    check_refused(guest, lvcmdq, command)
    write_blocks(lvcmdq, 4)  # CPU n issues its commands to logical queue n


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
