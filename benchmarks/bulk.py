"""Measure how fast a file comes out of a guest, by its bulk port and by its console."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable

from benchmarks.runner.call import seconds_of
from benchmarks.runner.figure import Benchmark, Better, Figure, Samples
from benchmarks.runner.host import SILENT, own_host
from benchmarks.runner.program import alone
from harness.errors import HarnessError
from harness.guest.description import GuestSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest

RATE = Figure(
    "guest-bytes", "reading a file of 4 MiB out of a guest", "MB/s", limit=2, better=Better.LARGER
)
CONSOLE_RATE = Figure(
    "console-bytes", "a file of 256 KiB, by the console", "MB/s", better=Better.LARGER
)
SHORT = Figure("guest-short", "a file of 100 bytes, by the bulk port", "ms")
CONSOLE_SHORT = Figure("console-short", "a file of 100 bytes, by the console", "ms")
#: In bytes: what the port carries, what the console does, and what is short.
_LONG, _MIDDLE, _SHORT = 4 << 20, 256 << 10, 100
_TIMES, _SHORT_TIMES = 3, 10


def measure(share: float) -> Samples:
    """Yield the rates, and the times of short files. What comes is compared with the file."""
    with own_host() as host:
        with Fleet(host, SILENT).guests([GuestSpec()], Freshness.COLD) as (guest,):
            for _ in range(_TIMES):
                yield RATE, rate(guest, _LONG, lambda: guest.read_file(f"/tmp/{_LONG}"))
            yield CONSOLE_RATE, rate(guest, _MIDDLE, lambda: guest.run(f"cat /tmp/{_MIDDLE}").data)
            guest.run(f"head -c {_SHORT} /dev/urandom >/tmp/{_SHORT}")
            for _ in range(_SHORT_TIMES):
                yield SHORT, 1e3 * seconds_of(lambda: guest.run_long(f"cat /tmp/{_SHORT}"))
                yield CONSOLE_SHORT, 1e3 * seconds_of(lambda: guest.run(f"cat /tmp/{_SHORT}"))
            # Without a port the console is used, and a note says so.
            if guest.journal.notes:
                raise HarnessError(f"the port was not used: {guest.journal.notes}")


def rate(guest: Guest, size: int, read: Callable[[], bytes]) -> float:
    """Return the megabytes a second at which /tmp/SIZE, random bytes, is read. Raises HarnessError
    for data that are not the file's."""
    made = f"head -c {size} /dev/urandom >/tmp/{size}; sha256sum </tmp/{size}"
    expected = guest.run(made).text.split()[0]
    started = time.monotonic()
    data = read()
    seconds = time.monotonic() - started
    if (len(data), hashlib.sha256(data).hexdigest()) != (size, expected):
        raise HarnessError(f"{len(data)} bytes came, and they are not those of the file")
    return size / seconds / 1e6


BENCHMARK = Benchmark((RATE, CONSOLE_RATE, SHORT, CONSOLE_SHORT), measure, seconds=30, lab=True)

if __name__ == "__main__":
    sys.exit(alone(__file__))
