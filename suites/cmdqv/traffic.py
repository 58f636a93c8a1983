"""Work for a guest's driver that puts commands into its command queues."""

from __future__ import annotations

import shlex

from harness.devices.nvme import Disk
from harness.guest.guest import Guest
from harness.host.ability import DISK


def write_blocks(guest: Guest, cpu: int, count: int) -> None:
    """Have a CPU of the guest write `count` blocks to its disk and read them. Each block ends with
    an unmap, which puts commands into that CPU's queue."""
    disk = Disk(guest, guest.device(DISK)).path
    command = f"dd if=/dev/urandom of={disk} bs=4k oflag=direct count={count} 2>&1"
    guest.run(f"taskset -c {cpu} {command}", timeout=60)
    verify = f"dd if={disk} bs=4k count={count} iflag=direct 2>/dev/null | wc -c"
    read = guest.run(f"taskset -c {cpu} sh -c {shlex.quote(verify)}").text
    assert read == f"{4096 * count}\n"
