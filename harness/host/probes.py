"""Kernel probes on a host, which show the arguments of calls that no log shows.

They need the capability `kprobe`. Source: Documentation/trace/kprobetrace.rst.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from harness.errors import LabError
from harness.host.session import Session

TRACING = "/sys/kernel/tracing"
_GROUP = "hil"

_REMOVE = """\
set -e
if [ -e {tracing}/events/{event} ]; then
  echo 0 >{tracing}/events/{event}/enable
  echo '-:{event}' >>{tracing}/kprobe_events
fi"""

#: A call that returns the values of each hit so far, in order.
Hits = Callable[[], list[dict[str, int]]]


@contextlib.contextmanager
def probed(session: Session, name: str, what: str) -> Iterator[Hits]:
    """Set a probe while the body runs; `what` is a kprobe definition after `p:group/name `.

    Yield a call that returns the values of each hit so far, in order. Set one probe at a time. It
    is removed when the body ends, and however else the session ends.
    """
    event, undo = f"{_GROUP}/{name}", f"kprobe {name}"
    enable = f"{TRACING}/events/{event}/enable"
    # The kernel refuses a probe that is there already: one of ours may be left of an agent that
    # could not remove it.
    remove = _REMOVE.format(tracing=TRACING, event=event)
    session.on_end(undo, remove)
    session.connection.run(
        f"{remove}\n"
        f"echo 'p:{event} {what}' >>{TRACING}/kprobe_events && "
        f"echo >{TRACING}/trace && echo 1 >{enable}"
    )

    def hits() -> list[dict[str, int]]:
        trace = session.connection.run(f"cat {TRACING}/trace").text
        return [
            {key: int(value, 0) for key, value in re.findall(r"(\w+)=(0x[0-9a-f]+|\d+)", line)}
            for line in trace.splitlines()
            if f" {name}: " in line
        ]

    try:
        yield hits
    finally:
        session.undo_now([undo])


@contextlib.contextmanager
def veventq_allocations(session: Session) -> Iterator[Hits]:
    """Watch IOMMU_VEVENTQ_ALLOC and record `type` and `depth` of each call.

    drivers/iommu/iommufd/eventq.c: iommufd_veventq_alloc(struct iommufd_ucmd *), whose `cmd`
    at offset 24 points to struct iommu_veventq_alloc (include/uapi/linux/iommufd.h).
    """
    arguments = "type=+12(+24(%x0)):u32 depth=+16(+24(%x0)):u32"
    with probed(session, "veventq", f"iommufd_veventq_alloc {arguments}") as hits:
        yield hits


@contextlib.contextmanager
def vevents_reported(session: Session) -> Iterator[Hits]:
    """Watch the SMMU's driver report events to vEVENTQs, also to full ones, and record `type` of
    each event (drivers/iommu/iommufd/driver.c: iommufd_viommu_report_event)."""
    with probed(session, "vevent", "iommufd_viommu_report_event type=%x1:u32") as hits:
        yield hits


_SIZE = """\
import sys
symbols = sorted((int(at, 16), name) for at, _, name, *_ in map(str.split, open("/proc/kallsyms")))
starts = [at for at, name in symbols if name == sys.argv[1]]
print(min(at for at, _ in symbols if at > starts[0]) - starts[0] if starts else 0)"""

_SLOW = """\
cd {tracing} || exit
offset=0
while [ $offset -lt {size} ]; do
  # Some instructions take no probe.
  echo "p:{group}/slow_$offset {function}+$offset" >>kprobe_events
  offset=$((offset + 4))
done 2>/dev/null
for one in events/{group}/slow_*/enable; do
  [ -e $one ] && echo 1 >$one && echo $one
done"""

_NOT_SLOW = """\
cd {tracing}
for one in events/{group}/slow_*; do
  [ -e $one ] || continue
  echo 0 >$one/enable
  echo "-:{group}/${{one##*/}}" >>kprobe_events
done"""


@contextlib.contextmanager
def slowed(session: Session, function: str) -> Iterator[None]:
    """Have a function of the host's kernel take the time of a probe at each of its instructions
    while the body runs: another CPU has more time between two of them, so that a race is lost more
    often. Raises LabError if the kernel has no such function, or allows no probe there."""
    undo = f"slow {function}"
    session.on_end(undo, _NOT_SLOW.format(tracing=TRACING, group=_GROUP))
    run = session.connection.run
    try:
        size = run(["python3", "-I", "-c", _SIZE, function]).text.strip()
        script = _SLOW.format(tracing=TRACING, group=_GROUP, function=function, size=size)
        if not run(script, check=False).text:
            where = session.connection.target.known_as
            raise LabError(
                f"no instruction of {function} takes a probe on {where}",
                fix="look in the host's /proc/kallsyms for the function's name",
            )
        yield
    finally:
        session.undo_now([undo])
