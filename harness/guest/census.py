"""What a guest holds on its host: counted between rounds of a long test, and compared.

IOMMU objects have ids that the kernel gives out lowest first (xa_alloc in drivers/iommu/iommufd):
the highest one tells of what was never freed, whoever kept it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from harness.guest.guest import Guest
from harness.smmu import trace
from harness.smmu.trace import TraceEvent

#: What memory may grow by and is not taken for a leak: caches, a heap's holes.
MEMORY_KIB = 24 * 1024
#: And ids: what happens at the same time happens in another order each time.
ID_SLACK = 4

#: And the field that has the id.
_ALLOCATIONS: dict[str, str] = {
    TraceEvent.ALLOC_HWPT: "out_hwpt",
    TraceEvent.ALLOC_VIOMMU: "viommu_id",
    TraceEvent.ALLOC_VDEV: "vdev_id",
    TraceEvent.ALLOC_EVENTQ: "veventq_id",
    TraceEvent.ALLOC_HW_QUEUE: "queue_id",
}


@dataclass(frozen=True)
class Census:
    """One count. `objects` are the IOMMU objects that QEMU has allocated and not freed, by kind;
    `highest_id` is the highest id it was given since the count before; `descriptors` are QEMU's, by
    what they are; `resident_kib` is its memory, `kernel_kib` what the host's kernel cannot reclaim;
    `vfio` are the devices that are open and those that vfio-pci drives."""

    objects: Counter[str]
    highest_id: int
    descriptors: Counter[str]
    resident_kib: int
    kernel_kib: int
    vfio: tuple[str, ...]

    def growth(self, before: Census) -> list[str]:
        """What is more than it was, a line each: nothing when all was given back."""
        grown = []
        for what, now, then in (
            ("IOMMU objects", self.objects, before.objects),
            ("descriptors", self.descriptors, before.descriptors),
        ):
            more = sorted(now - then)
            grown += [f"{what}: {kind}: {then[kind]} to {now[kind]}" for kind in more]
        if self.highest_id > before.highest_id + ID_SLACK:
            grown.append(f"highest IOMMU object: {before.highest_id} to {self.highest_id}")
        if self.resident_kib > before.resident_kib + MEMORY_KIB:
            grown.append(f"QEMU's memory: {before.resident_kib} to {self.resident_kib} KiB")
        if self.kernel_kib > before.kernel_kib + MEMORY_KIB:
            grown.append(f"the kernel's memory: {before.kernel_kib} to {self.kernel_kib} KiB")
        if self.vfio != before.vfio:
            grown.append(f"vfio devices: {before.vfio} to {self.vfio}")
        return grown


class Counting:
    """Counts of one guest, of all that it did since it started."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._lines = guest.host_tail(guest.paths.trace_log)
        self._alive: dict[int, str] = {}

    def take(self) -> Census:
        """Count now. The guest should be at rest."""
        highest = self._follow()
        pid = self.guest.qemu_pid()
        said = self.guest.host_run(
            f"ls -l /proc/{pid}/fd | sed -n 's/.* -> //p'; grep VmRSS /proc/{pid}/status; "
            "grep SUnreclaim /proc/meminfo; "
            "ls -d /sys/bus/pci/drivers/vfio-pci/*:* /sys/class/vfio-dev/* 2>/dev/null"
        ).splitlines()
        vfio = tuple(line for line in said if line.startswith("/sys/"))
        kib = {line.split(":")[0]: int(line.split()[1]) for line in said if line.endswith(" kB")}
        files = [line for line in said if line not in vfio and not line.endswith(" kB")]
        kinds = Counter(re.sub(r"\d+", "N", name) for name in files)
        objects = Counter(self._alive.values())
        return Census(objects, highest, kinds, kib["VmRSS"], kib["SUnreclaim"], vfio)

    def _follow(self) -> int:
        """Take note of what QEMU allocated and freed since the last time; the highest id."""
        return note(trace.parse(self._lines.lines()), self._alive)


def note(lines: Iterable[trace.TraceLine], alive: dict[int, str]) -> int:
    """Bring `alive`, what is allocated by id, up to date with QEMU's trace; the highest id that was
    given. A call that failed changes nothing: what could not be freed is still there."""
    highest = 0
    for line in lines:
        if not line.succeeded:
            continue
        if line.name == TraceEvent.FREE_ID:
            alive.pop(line.number("id"), None)
        elif line.name in _ALLOCATIONS:
            identity = line.number(_ALLOCATIONS[line.name])
            alive[identity] = line.name
            highest = max(highest, identity)
    return highest
