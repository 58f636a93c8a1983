"""Measure what the silicon model costs a guest: NVMe with and without a CMDQV. `silicon` measures
the model alone."""

from __future__ import annotations

import sys

from benchmarks.runner.call import seconds_of
from benchmarks.runner.figure import Benchmark, Better, Figure, Samples
from benchmarks.runner.host import CMDQV, SILENT, own_host
from benchmarks.runner.program import alone
from harness.devices.nvme import Disk
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest
from harness.host.ability import DISK
from harness.virtual.silicon.client import SiliconClient

WRITE = Figure(
    "nvme-write",
    "the rate of writing 4 KiB blocks with a CMDQV, as a part of that without",
    "of 1",
    limit=0.5,
    better=Better.LARGER,
)
READ = Figure("nvme-read", "the same for reading", "of 1", limit=0.5, better=Better.LARGER)
BATCH = Figure("batch", "the model, for a batch of the guest's commands: median", "ms")
_BLOCKS = 16384


def measure(share: float) -> Samples:
    """Yield the figures of writing and reading. The data are compared bit by bit."""
    seconds = {}
    with own_host(CMDQV) as host:
        fleet = Fleet(host, SILENT)
        for value in ("off", "on"):
            smmu = SmmuSpec(devices=(DISK,), properties=(("cmdqv", value),))
            with fleet.guests([GuestSpec(smmus=(smmu,))], Freshness.COLD) as (guest,):
                seconds[value] = timed_copy(guest, int(_BLOCKS * share))
        assert isinstance(host.description.silicon, SiliconClient)
        status = host.description.silicon.status()
    for at, figure in enumerate((WRITE, READ)):
        yield figure, seconds["off"][at] / seconds["on"][at]
    yield BATCH, status["median_seconds"] * 1e3


def timed_copy(guest: Guest, blocks: int) -> tuple[float, float]:
    """Return the seconds to write the data and the seconds to read them."""
    disk = Disk(guest, guest.device(DISK)).path
    guest.run(f"dd if=/dev/urandom of=/tmp/data bs=4k count={blocks} 2>/dev/null", timeout=300)

    def timed(command: str) -> float:
        return seconds_of(lambda: guest.run(f"{command} 2>/dev/null", timeout=900))

    write = timed(f"dd if=/tmp/data of={disk} bs=4k oflag=direct")
    read = timed(f"dd if={disk} of=/dev/null bs=4k count={blocks} iflag=direct")
    # The guest's memory has no room for a copy.
    guest.run(f"cmp -n {blocks * 4096} /tmp/data {disk}", timeout=300)
    return write, read


BENCHMARK = Benchmark((WRITE, READ, BATCH), measure, seconds=120, lab=True)

if __name__ == "__main__":
    sys.exit(alone(__file__))
