"""A CMDQV in use survives unplug, reset and reboot, and two guests with one each stay apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures.guests import WITH_CMDQV
from harness.devices.nvme import Disk
from harness.errors import HarnessError
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.guest.hotplug import unplug
from harness.host.host import Silicon
from harness.qmp import QmpRefusedError
from harness.smmu.cmdqv import ENABLE, Page0, QueueError
from harness.smmu.trace import TraceEvent
from harness.waiting import wait_for

ON = (("cmdqv", "on"),)
NVME = GuestSpec(smmus=(SmmuSpec(devices=("nvme",), properties=ON),))
EDU = GuestSpec(smmus=(SmmuSpec(devices=("edu",), properties=ON),))
BLOCKED = (
    "CMDQV is active: removing the device that established the viommu association would break "
    "the guest CMDQV"
)

pytestmark = [
    pytest.mark.needs("cmdqv"),
    pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED),
]


@pytest.mark.covers("CQV-11")
@pytest.mark.parametrize("how", ["reset", "reboot"])
def test_a_restart_frees_the_queues_and_allocates_them_anew(
    guest: Guest, write_blocks: Callable[[int, int], None], how: str
) -> None:
    write_blocks(0, 4)
    before = guest.trace_size()
    old = guest.trace().numbers(TraceEvent.ALLOC_HW_QUEUE, "queue_id")[-2:]

    if how == "reset":
        guest.monitor.execute("system_reset")
    else:
        guest.console.send("reboot -f")
    guest.wait_ready()

    trace = guest.trace(before)
    freed = trace.numbers(TraceEvent.FREE_ID, "id")
    assert [queue for queue in freed if queue in old] == old[::-1]
    assert trace.count(TraceEvent.ALLOC_HW_QUEUE) == 2
    assert trace.texts(TraceEvent.CMDQV_INIT_REGS) == ["register init, param=0x00004011"]
    cmdqv = GuestCmdqv(guest)
    for queue in range(2):
        assert cmdqv.read(cmdqv.page0(queue, Page0.STATUS)) & ENABLE
        write_blocks(queue, 4)


@pytest.mark.covers("CQV-09")
def test_the_first_device_cannot_be_unplugged_and_others_can(
    guest: Guest, write_blocks: Callable[[int, int], None]
) -> None:
    """QEMU keeps the first device, because the vIOMMU was allocated for it."""
    first, second = guest.device("edu"), guest.device("iommu-testdev")
    with pytest.raises(QmpRefusedError, match=BLOCKED):
        unplug(guest, first)
    unplug(guest, second)
    write_blocks(0, 4)


@pytest.mark.covers("CQV-13")
@pytest.mark.needs("cmdqv-model")
@pytest.mark.guest(NVME, EDU)
def test_two_guests_have_an_interface_each_and_no_event_crosses(
    guests: list[Guest], silicon: Silicon
) -> None:
    busy, idle = guests
    disk = Disk(busy, busy.device("nvme")).path
    before, done = [guest.trace_size() for guest in guests], silicon.count()

    def write() -> None:
        command = f"dd if=/dev/zero of={disk} bs=4k count=4 oflag=direct 2>&1"
        busy.run(command, timeout=60)

    write()
    (interface,) = {vintf for vintf, *_ in silicon.commands(done)}
    silicon.inject(interface, 0, QueueError.ILLEGAL)
    write()

    def error_maps(index: int) -> list[str]:
        return guests[index].trace(before[index]).texts(TraceEvent.CMDQV_ERR_MAP)

    wait_for("the guest's QEMU to hear of the error", lambda: error_maps(0), deadline=10)
    assert error_maps(1) == []
    assert idle.kernel_log("CMDQ error") == ""
    assert busy.kernel_log("CMDQ error")
    # The idle guest uses the other interface. The model's error shows that this one exists, and
    # that it has no more than its two queues.
    other = GuestCmdqv(idle)
    with pytest.raises(HarnessError, match=f"VINTF {3 - interface} has no LVCMDQ 2"):
        silicon.inject(3 - interface, 2, QueueError.ILLEGAL)
    assert other.read(other.page0(0, Page0.STATUS)) & ENABLE
