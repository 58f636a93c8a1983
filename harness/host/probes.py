"""Kernel probes on a host, which show the arguments of calls that no log shows.

They need the capability `kprobe`. Source: Documentation/trace/kprobetrace.rst.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

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
