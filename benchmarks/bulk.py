"""Measure how fast a file comes out of a guest, by its port and by its console. `make bench`."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable

from harness.artifacts.store import Store
from harness.guest.description import GuestSpec
from harness.guest.fleet import Fleet, Freshness
from harness.host.host import Host
from harness.lab.inventory import HostEntry, Virtual
from harness.lab.provide import provided
from harness.progress import Progress

#: Of the file that the port carries, and of the one that the console does.
BYTES, CONSOLE_BYTES = 4 << 20, 256 << 10


def rate(size: int, read: Callable[[], bytes], expected: str) -> float:
    """Return the megabytes a second at which `size` bytes with a SHA-256 of `expected` are read."""
    started = time.monotonic()
    data = read()
    seconds = time.monotonic() - started
    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, expected), "damaged"
    return size / seconds / 1e6


def main() -> None:
    entry = HostEntry(name=f"bench-{os.getpid()}", virtual=Virtual())
    progress = Progress(enabled=False)
    with provided(entry, Store(), progress) as described, Host.open(described) as host:
        fleet = Fleet(host, progress)
        with fleet.guests([GuestSpec()], Freshness.COLD) as (guest,):
            digests = {}
            for size in (BYTES, CONSOLE_BYTES, 100):
                made = f"head -c {size} /dev/urandom >/tmp/{size}; sha256sum </tmp/{size}"
                digests[size] = guest.run(made).text.split()[0]
            for _ in range(3):
                port = rate(BYTES, lambda: guest.read_file(f"/tmp/{BYTES}"), digests[BYTES])
                print(f"port, {BYTES >> 20} MiB: {port:.2f} MB/s")
            console = rate(
                CONSOLE_BYTES,
                lambda: guest.run(f"cat /tmp/{CONSOLE_BYTES}").data,
                digests[CONSOLE_BYTES],
            )
            print(f"console, {CONSOLE_BYTES >> 10} KiB: {console:.2f} MB/s")
            for what, read in (("port", guest.run_long), ("console", guest.run)):
                times = []
                for _ in range(10):
                    started = time.monotonic()
                    read("cat /tmp/100")
                    times.append(time.monotonic() - started)
                print(f"{what}, 100 bytes: {sorted(times)[5] * 1000:.0f} ms")
            assert guest.journal.notes == [], guest.journal.notes


if __name__ == "__main__":
    main()
