"""Parse QEMU's trace log (`-d trace:…`, log backend). Pure: text in, values out."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from harness.errors import ProductError
from harness.smmu.vevents import QueueType

#: The time stamp before every line of a QEMU with -msg timestamp=on. One in a million has no
#: fraction: g_date_time_format_iso8601 leaves it out if it is 0.
_STAMP = re.compile(r"^(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)Z\s+")
_EVENT = re.compile(r"^(?P<name>[a-z][a-z0-9]*(?:_[a-z0-9]+)+)\s+(?P<rest>.*)$")
_FIELD = re.compile(r"(\w+)=(\S+)")


class TraceEvent(enum.StrEnum):
    """The trace events of QEMU that every guest's log records; no others are recorded.

    Sources: hw/arm/trace-events, backends/trace-events in QEMU.
    """

    PROPAGATE_EVENT = "smmuv3_propagate_event"
    WRITE_GERROR = "smmuv3_write_gerror"
    WRITE_GERRORN = "smmuv3_write_gerrorn"
    SET_IOMMU_DEVICE = "smmuv3_accel_set_iommu_device"
    UNSET_IOMMU_DEVICE = "smmuv3_accel_unset_iommu_device"
    TRANSLATE_STE = "smmuv3_accel_translate_ste"
    INSTALL_STE = "smmuv3_accel_install_ste"
    ALLOC_VIOMMU = "iommufd_backend_alloc_viommu"
    ALLOC_VDEV = "iommufd_backend_alloc_vdev"
    ALLOC_HWPT = "iommufd_backend_alloc_hwpt"
    FREE_ID = "iommufd_backend_free_id"
    ALLOC_EVENTQ = "iommufd_viommu_alloc_eventq"
    ALLOC_HW_QUEUE = "iommufd_backend_alloc_hw_queue"
    VIOMMU_MMAP = "iommufd_backend_viommu_mmap"
    INVALIDATE_CACHE = "iommufd_backend_invalidate_cache"
    CMDQV_ERR_MAP = "tegra241_cmdqv_err_map"
    CMDQV_INIT_REGS = "tegra241_cmdqv_init_regs"
    READ_VCMDQ_PAGE0 = "tegra241_cmdqv_read_vcmdq_page0"
    WRITE_VCMDQ_PAGE0 = "tegra241_cmdqv_write_vcmdq_page0"


@dataclass(frozen=True)
class TraceLine:
    """One line of the log: the event's `name`, the whole `text` after the name, and the text's
    `key=value` fields. `time` is in seconds since 1970 of the host's clock, or None without a
    stamp."""

    name: str
    text: str
    time: float | None = None
    fields: dict[str, str] = field(default_factory=dict)

    def number(self, key: str) -> int:
        """Return a field as an integer (decimal, or 0x…). Raises ProductError that quotes the line
        if it does not have the field, or if that is not a number."""
        try:
            return int(self.fields[key].strip("(),[]:"), 0)
        except (KeyError, ValueError):
            raise ProductError(
                f"QEMU's trace has a line without a number {key}: {self.name} {self.text}",
                fix="compare the line with the trace-events files of this QEMU: either it is "
                "damaged, or the event has other fields in this version",
            ) from None

    @property
    def succeeded(self) -> bool:
        """Return whether the traced call succeeded. iommufd's events end with the call's result."""
        return self.text.endswith("(0)")


@dataclass(frozen=True)
class Trace:
    """The lines of a trace log, in order."""

    lines: tuple[TraceLine, ...]

    @classmethod
    def of(cls, text: str) -> Trace:
        """Parse a log. Lines that are not trace events are left out."""
        return cls(tuple(parse(text.splitlines())))

    def __iter__(self) -> Iterator[TraceLine]:
        return iter(self.lines)

    @property
    def names(self) -> list[str]:
        """Return the event's name on each line."""
        return [line.name for line in self.lines]

    def named(self, *events: TraceEvent) -> Trace:
        """Return the lines of these events, in order."""
        return Trace(tuple(line for line in self.lines if line.name in events))

    def count(self, event: TraceEvent) -> int:
        """Return how many lines an event has."""
        return self.names.count(event)

    def event_queues(self, kind: QueueType) -> Trace:
        """Return the lines of allocations of vEVENTQs of a type: a guest with a CMDQV has one of
        another type beside its SMMU's. Raises as TraceLine.number."""
        allocated = self.named(TraceEvent.ALLOC_EVENTQ)
        return Trace(tuple(line for line in allocated if line.number("type") == kind))

    def first(self, event: TraceEvent) -> TraceLine:
        """Return an event's first line. Raises ProductError if there is none."""
        for line in self.named(event):
            return line
        others = ", ".join(sorted(set(self.names))) or "nothing"
        raise ProductError(f"QEMU's trace has no {event}; it has {others}")

    def texts(self, event: TraceEvent) -> list[str]:
        """Return the text after the name of each of an event's lines."""
        return [line.text for line in self.named(event)]

    def numbers(self, event: TraceEvent, key: str) -> list[int]:
        """Return a field of each of an event's lines. Raises as TraceLine.number."""
        return [line.number(key) for line in self.named(event)]

    def before(self, line: TraceLine) -> Trace:
        """Return the lines before a line of this trace. Raises ValueError for another line."""
        return Trace(self.lines[: self.lines.index(line)])

    def after(self, line: TraceLine) -> Trace:
        """Return the lines after a line of this trace. Raises ValueError for another line."""
        return Trace(self.lines[self.lines.index(line) + 1 :])


def stamped(line: str) -> tuple[float | None, str]:
    """Return a line's time stamp, in seconds since 1970 of the host's clock, or None without one;
    and the rest of the line."""
    stamp = _STAMP.match(line)
    if stamp is None:
        return None, line
    try:
        time = datetime.fromisoformat(stamp["time"]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None, line  # there is no such day or hour
    return time, line[stamp.end() :]


def parse_line(line: str) -> TraceLine | None:
    """Return the event on a line; None for a message of QEMU's or anything else."""
    time, rest = stamped(line)
    event = _EVENT.match(rest.rstrip())
    if not event:
        return None
    text = event["rest"]
    return TraceLine(event["name"], text, time, dict(_FIELD.findall(text)))


def parse(lines: Iterable[str]) -> Iterator[TraceLine]:
    """Yield the events on lines. Lines that are not trace events are left out."""
    for line in lines:
        parsed = parse_line(line)
        if parsed:
            yield parsed


@dataclass(frozen=True)
class PropagatedEvent:
    """An event that QEMU traced as `smmuv3_propagate_event`: it has written a record of the host's
    to the guest's queue. `name` is the type's, `sid` the vSID."""

    name: str
    sid: int


def propagated(lines: Iterable[TraceLine]) -> list[PropagatedEvent]:
    """Return the events that QEMU forwarded, in order. Raises as TraceLine.number."""
    return [
        PropagatedEvent(line.text.partition(" ")[0].removeprefix("SMMU_EVT_"), line.number("sid"))
        for line in lines
        if line.name == TraceEvent.PROPAGATE_EVENT
    ]
