"""These fixtures are shared by the tests of a CMDQV."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest

from harness.devices.nvme import Disk
from harness.guest.guest import Guest
from harness.host.ability import DISK


@pytest.fixture
def write_blocks(guest: Guest) -> Callable[[int, int], None]:
    """Return a function that has CPU `cpu` of the guest write `count` blocks to its disk and read
    them. Each block ends with an unmap, which puts commands into that CPU's queue."""

    def write(cpu: int, count: int) -> None:
        disk = Disk(guest, guest.device(DISK)).path
        command = f"dd if=/dev/urandom of={disk} bs=4k oflag=direct count={count} 2>&1"
        guest.run(f"taskset -c {cpu} {command}", timeout=60)
        verify = f"dd if={disk} bs=4k count={count} iflag=direct 2>/dev/null | wc -c"
        assert (
            guest.run(f"taskset -c {cpu} sh -c {shlex.quote(verify)}").text == f"{4096 * count}\n"
        )

    return write
