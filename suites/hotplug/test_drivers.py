"""A guest's driver gives its device up and takes it again, and resets it, many times."""

from __future__ import annotations

from functools import partial

import pytest

from harness.devices.nvme import Disk
from harness.errors import ProductError
from harness.guest.census import Counting
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.vfio import unbound
from harness.host.ability import DISK
from harness.waiting import wait_for

#: A CPU for the traffic, and one for what disturbs it.
GUEST = GuestSpec(smmus=(SmmuSpec(devices=(DISK,)),), cpus=2)
ROUNDS = 10
MIB = 4


@pytest.mark.covers("HOT-07")
@pytest.mark.guest(GUEST)
@pytest.mark.timeout(300)
def test_a_driver_comes_and_goes(guest: Guest) -> None:
    """What was written stays readable, no DMA faults, and nothing is left behind."""
    device, queue = guest.device(DISK), guest.event_queue()
    mark, counting = queue.mark(), Counting(guest)
    written = Disk(guest, device).write_random(mib=MIB)

    def rebind() -> None:
        unbound(guest, device)
        assert Disk(guest, device).digest(mib=MIB) == written

    # QEMU and the kernel keep some objects from the first use on; they are not counted as growth.
    rebind()
    first = counting.take()
    for _ in range(ROUNDS):
        rebind()
    assert counting.take().growth(first) == []
    assert queue.since(mark) == []
    assert guest.qemu_messages() == ""


def more_than(disk: Disk, sectors: int) -> int:
    """Return how many sectors were written to a disk if they are more than these, else 0."""
    written = disk.written_sectors()
    return written if written > sectors else 0


@pytest.mark.covers("HOT-07")
@pytest.mark.guest(GUEST)
@pytest.mark.timeout(300)
def test_resets_under_traffic(guest: Guest) -> None:
    """The driver repeats what a reset interrupts: its user sees no error, and all data arrive."""
    device, queue = guest.device(DISK), guest.event_queue()
    disk, mark = Disk(guest, device), queue.mark()
    prepare = f"dd if=/dev/urandom of=/tmp/data bs=1M count={MIB} 2>/dev/null; sha256sum </tmp/data"
    data = guest.run(prepare).text.split()[0]
    write = f"dd if=/tmp/data of={disk.path} bs=64k oflag=direct conv=notrunc 2>/dev/null"
    guest.run(
        f"(taskset -c 1 sh -c 'until [ -e /tmp/enough ]; do {write} || exit 1; done'; "
        "echo $? >/tmp/ended) >/dev/null 2>&1 &"
    )
    live = f"until [ $(cat {device.sysfs}/nvme/nvme*/state) = live ]; do usleep 10000; done"
    written = 0
    for number in range(ROUNDS):
        written = wait_for(
            f"data to flow before reset {number}",
            partial(more_than, disk, written + 100),
            deadline=20,
            error=ProductError,
        )
        guest.run(f"echo 1 >{device.sysfs}/reset && {live}")
    wait = "until [ -s /tmp/ended ]; do usleep 10000; done; cat /tmp/ended"
    assert guest.run(f"echo >/tmp/enough; {wait}").text == "0\n", "a write failed"
    assert disk.digest(mib=MIB) == data
    assert queue.since(mark) == []
    assert guest.qemu_messages() == ""
