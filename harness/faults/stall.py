"""QEMU standing still: whatever the kernel sends it must wait, or is lost."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from harness.errors import LabError
from harness.guest.guest import Guest
from harness.steps import step
from harness.waiting import wait_for

#: aarch64's number of openat(2) (include/uapi/asm-generic/unistd.h).
OPENAT = 56


@contextlib.contextmanager
def stalled(guest: Guest) -> Iterator[float]:
    """QEMU's main loop stands still while the body runs; yields since when, by the host's clock.

    Its monitor is asked to save memory into a FIFO, and waits in open(2), holding its big lock, for
    somebody to read it. The guest goes on until it needs QEMU, as its console does: what it shall
    do meanwhile must be under way before. Assigned devices need no QEMU.

    Raises LabError when QEMU does not come to stand still.
    """
    fifo = f"{guest.paths.folder}/stall"
    guest.host_run(["mkfifo", fifo])
    asking = threading.Thread(
        target=guest.monitor.execute,
        args=("pmemsave",),
        kwargs={"val": 0, "size": 1, "filename": fifo},
        name="stall",
        daemon=True,
    )
    try:
        with step("stall QEMU"):
            asking.start()
            main = guest.qemu_pid()
            syscall = f"cat /proc/{main}/task/{main}/syscall; date +%s.%N"
            since = wait_for(
                "QEMU's main loop to wait at the FIFO",
                lambda: _stands(guest.host_run(syscall)),
                deadline=10,
                error=LabError,
            )
        yield since
    finally:
        # Whoever reads lets QEMU go on; the writer's end closes, and so does this.
        guest.host_run(f"timeout 10 cat {fifo} >/dev/null; rm -f {fifo}")
        asking.join(timeout=30)


def _stands(said: str) -> float | None:
    """The host's time, if the thread is in openat."""
    syscall, _, now = said.strip().partition("\n")
    return float(now) if syscall.split()[0] == str(OPENAT) else None
