"""Count what a guest holds on its host between the rounds of a long test, and compare the counts.

The kernel gives an IOMMU object the lowest free id (xa_alloc in drivers/iommu/iommufd). So a
highest id that grows shows that objects were never freed, whoever kept them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from harness.errors import LabError
from harness.guest.guest import Guest
from harness.smmu import trace
from harness.smmu.trace import TraceEvent

#: Growth of memory, in KiB, that is not taken for a leak: caches and the holes of a heap grow.
MEMORY_KIB = 24 * 1024
#: Growth of the highest id that is not taken for a leak: concurrent calls get their ids in another
#: order each time.
ID_SLACK = 4
#: How the lines of `Census.growth` begin that are about objects that the kernel did not free.
STUCK = "stuck IOMMU objects"

#: The events that trace an allocation, and the field of each that has the id of the new object.
_ALLOCATIONS: dict[str, str] = {
    TraceEvent.ALLOC_HWPT: "out_hwpt",
    TraceEvent.ALLOC_VIOMMU: "viommu_id",
    TraceEvent.ALLOC_VDEV: "vdev_id",
    TraceEvent.ALLOC_EVENTQ: "veventq_id",
    TraceEvent.ALLOC_HW_QUEUE: "queue_id",
}


@dataclass(frozen=True)
class Census:
    """One count of what a guest holds.

    `objects` are the IOMMU objects that QEMU has allocated and not freed, by kind; `stuck` are
    those of them that QEMU wanted to free and the kernel did not. `highest_id` is the highest id
    that QEMU was given since the previous count. `descriptors` are QEMU's open files by their
    names, with numbers replaced by N. `resident_kib` is QEMU's resident memory and
    `kernel_kib` the memory that the host's kernel cannot reclaim, both in KiB. `vfio` are the
    devices that are open and those that a vfio driver of the host drives.
    """

    objects: Counter[str]
    stuck: Counter[str]
    highest_id: int
    descriptors: Counter[str]
    resident_kib: int
    kernel_kib: int
    vfio: tuple[str, ...]

    def growth(self, before: Census) -> list[str]:
        """Return what grew since `before`, a line each; nothing if all was given back. What is
        stuck has lines of its own, and explains as many higher ids."""
        grown = []
        for what, now, then in (
            ("IOMMU objects", self.objects - self.stuck, before.objects - before.stuck),
            (STUCK, self.stuck, before.stuck),
            ("descriptors", self.descriptors, before.descriptors),
        ):
            more = sorted(now - then)
            grown += [f"{what}: {kind}: {then[kind]} to {now[kind]}" for kind in more]
        slack = ID_SLACK + (self.stuck - before.stuck).total()
        if self.highest_id > before.highest_id + slack:
            grown.append(f"highest IOMMU object: {before.highest_id} to {self.highest_id}")
        if self.resident_kib > before.resident_kib + MEMORY_KIB:
            grown.append(f"QEMU's memory: {before.resident_kib} to {self.resident_kib} KiB")
        if self.kernel_kib > before.kernel_kib + MEMORY_KIB:
            grown.append(f"the kernel's memory: {before.kernel_kib} to {self.kernel_kib} KiB")
        if self.vfio != before.vfio:
            grown.append(f"vfio devices: {before.vfio} to {self.vfio}")
        return grown


# Each line begins with what it is: a file's name may be anything.
_HELD = """\
ls -l /proc/{pid}/fd | sed -n 's/.* -> /file /p'
grep VmRSS /proc/{pid}/status
grep SUnreclaim /proc/meminfo
ls -d /sys/bus/pci/drivers/*vfio*/*:* /sys/class/vfio-dev/* 2>/dev/null | sed 's/^/vfio /'
true"""
_KIB = re.compile(r"(?P<what>\w+):\s+(?P<kib>[0-9]{1,18}) kB")


@dataclass(frozen=True)
class Held:
    """What a guest's host says that it holds: the fields of Census that are not of QEMU's trace."""

    descriptors: Counter[str]
    resident_kib: int
    kernel_kib: int
    vfio: tuple[str, ...]

    @classmethod
    def of(cls, said: str) -> Held:
        """Read the lines that `_HELD` prints. Raises LabError if one is missing, as when QEMU has
        ended meanwhile, or is of no known form."""
        files: Counter[str] = Counter()
        vfio: list[str] = []
        kib: dict[str, int] = {}
        for line in said.split("\n"):
            kind, _, rest = line.partition(" ")
            memory = _KIB.fullmatch(line)
            if kind == "file":
                files[re.sub(r"\d+", "N", rest)] += 1
            elif kind == "vfio":
                vfio.append(rest)
            elif memory:
                kib[memory["what"]] = int(memory["kib"])
            elif line:
                raise _miscounted(f"an unknown line: {line!r}")
        for field in ("VmRSS", "SUnreclaim"):
            if field not in kib:
                raise _miscounted(f"no {field}")
        return cls(files, kib["VmRSS"], kib["SUnreclaim"], tuple(vfio))


def _miscounted(problem: str) -> LabError:
    return LabError(
        f"what the guest holds on its host cannot be counted: the host's answer has {problem}",
        fix="look whether QEMU has ended meanwhile: its log says why",
    )


class Counting:
    """Counts what one guest holds, and follows QEMU's trace from the guest's start for that."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._lines = guest.host_tail(guest.paths.trace_log)
        self._alive: dict[int, str] = {}
        self._stuck: set[int] = set()

    def take(self) -> Census:
        """Count now, and return the count. The guest should be idle. Raises LabError if the host
        does not tell, ProductError for a damaged line of QEMU's trace."""
        highest = self._follow()
        pid = self.guest.qemu_pid()
        held = Held.of(self.guest.host_run(_HELD.format(pid=pid)))
        return Census(
            objects=Counter(self._alive.values()),
            stuck=Counter(self._alive[one] for one in self._stuck),
            highest_id=highest,
            descriptors=held.descriptors,
            resident_kib=held.resident_kib,
            kernel_kib=held.kernel_kib,
            vfio=held.vfio,
        )

    def _follow(self) -> int:
        """Note what QEMU allocated and freed since the last call; return the highest id."""
        return note(trace.parse(self._lines.lines()), self._alive, self._stuck)


def note(lines: Iterable[trace.TraceLine], alive: dict[int, str], stuck: set[int]) -> int:
    """Update `alive`, the names of allocations by id, and `stuck`, the ids of those among them that
    could not be freed, from QEMU's trace; return the highest new id.

    A call that failed frees nothing and allocates nothing. Raises as TraceLine.number.
    """
    highest = 0
    for line in lines:
        if line.name == TraceEvent.FREE_ID:
            identity = line.number("id")
            if line.succeeded:
                alive.pop(identity, None)
                stuck.discard(identity)
            elif identity in alive:
                stuck.add(identity)
        elif not line.succeeded:
            continue
        elif line.name in _ALLOCATIONS:
            identity = line.number(_ALLOCATIONS[line.name])
            alive[identity] = line.name
            highest = max(highest, identity)
    return highest
