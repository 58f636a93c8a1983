"""Measure how fast bytes come out of a guest."""

from __future__ import annotations

import hashlib
import sys

from benchmarks.runner.call import seconds_of
from benchmarks.runner.figure import Benchmark, Better, Figure, Samples
from benchmarks.runner.host import SILENT, own_host
from benchmarks.runner.program import alone
from harness.errors import ProductError
from harness.guest.description import GuestSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest

RATE = Figure(
    "guest-bytes", "reading a file of 4 MiB out of a guest", "MB/s", limit=2, better=Better.LARGER
)
_MIB = 4
_FILE = "/tmp/bytes"
_TIMES = 3


def measure(share: float) -> Samples:
    """Yield the rate of some reads of a file of random bytes, which come as they are there."""
    with own_host() as host, Fleet(host, SILENT).guests([GuestSpec()]) as (guest,):
        guest.run(f"dd if=/dev/urandom of={_FILE} bs=1M count={_MIB} 2>/dev/null", timeout=120)
        digest = guest.run(f"sha256sum <{_FILE}").text.split()[0]
        for _ in range(_TIMES):
            got: list[bytes] = []
            seconds = seconds_of(lambda got=got: got.append(read(guest)))  # type: ignore[misc]
            if hashlib.sha256(got[0]).hexdigest() != digest:
                raise ProductError("the guest's file and what came out of it differ")
            yield RATE, len(got[0]) / seconds / 1e6


def read(guest: Guest) -> bytes:
    """Return the file's bytes."""
    return guest.run(f"cat {_FILE}", timeout=300).data


BENCHMARK = Benchmark((RATE,), measure, seconds=30, lab=True)

if __name__ == "__main__":
    sys.exit(alone(__file__))
