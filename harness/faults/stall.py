"""Stall QEMU's main loop so that the kernel's event queue overflows."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from harness.errors import LabError
from harness.guest.guest import Guest
from harness.qmp import QmpRefusedError
from harness.steps import step
from harness.waiting import wait_for

#: aarch64's number of openat(2) (include/uapi/asm-generic/unistd.h).
OPENAT = 56


@contextlib.contextmanager
def stalled(guest: Guest) -> Iterator[float]:
    """Stall QEMU's main loop while the body runs; yield since when, in seconds of the host's clock.

    QEMU is asked to save memory to a FIFO. It waits in open(2), holding its big lock, until a
    reader opens the FIFO. The guest runs on until it needs QEMU, as its console does, so what the
    guest shall do during the stall must be started before. Assigned devices do not need QEMU.

    Raises QmpRefusedError if QEMU refuses, LabError if it does not stall within ten seconds.
    """
    fifo = f"{guest.paths.folder}/stall"
    guest.host_run(["mkfifo", fifo])
    refused: list[QmpRefusedError] = []

    def ask() -> None:
        try:
            guest.monitor.execute("pmemsave", val=0, size=1, filename=fifo)
        except QmpRefusedError as problem:
            refused.append(problem)
        except LabError:
            pass  # no answer comes during a long stall, and a QEMU that died is told by others

    def since_when() -> float | None:
        if refused:
            raise refused[0]
        return _stalled_at(guest.host_run(syscall))

    asking = threading.Thread(target=ask, name="stall", daemon=True)
    try:
        with step("stall QEMU"):
            asking.start()
            main = guest.qemu_pid()
            syscall = f"cat /proc/{main}/task/{main}/syscall; date +%s.%N"
            since = wait_for(
                "QEMU's main loop to wait at the FIFO",
                since_when,
                deadline=10,
                error=LabError,
            )
        yield since
    finally:
        # A reader lets QEMU run on. QEMU closes its end of the FIFO then, which ends `cat`.
        read = "" if refused else f"timeout 10 cat {fifo} >/dev/null; "
        guest.host_run(f"{read}rm -f {fifo}")
        asking.join(timeout=30)


def _stalled_at(said: str) -> float | None:
    """Return the host's time if the thread is in openat(2), else None."""
    syscall, _, now = said.strip().partition("\n")
    return float(now) if syscall.split()[0] == str(OPENAT) else None
