"""QEMU's trace log, line by line (`-d trace:…`, log backend). Text in, values out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

#: Stands before every line when QEMU runs with -msg timestamp=on. One in a million has no fraction:
#: g_date_time_format_iso8601 leaves it out when it is 0.
_STAMP = re.compile(r"^(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?)Z\s+")
_EVENT = re.compile(r"^(?P<name>[a-z][a-z0-9]*(?:_[a-z0-9]+)+)\s+(?P<rest>.*)$")
_FIELD = re.compile(r"(\w+)=(\S+)")


@dataclass(frozen=True)
class TraceLine:
    """One trace event: `name`, its `key=value` fields as text, and the whole text after the
    name. `time` is seconds since 1970 by the host's clock, None without a stamp."""

    name: str
    text: str
    time: float | None = None
    fields: dict[str, str] = field(default_factory=dict)

    def number(self, key: str) -> int:
        """A field as an integer (decimal, or 0x…). Raises KeyError, ValueError."""
        return int(self.fields[key].strip("(),[]:"), 0)


def stamped(line: str) -> tuple[float | None, str]:
    """A line's time stamp, seconds since 1970 by the host's clock or None, and the rest of it."""
    stamp = _STAMP.match(line)
    if stamp is None:
        return None, line
    time = datetime.fromisoformat(stamp["time"]).replace(tzinfo=UTC).timestamp()
    return time, line[stamp.end() :]


def parse_line(line: str) -> TraceLine | None:
    """The event on a line; None for QEMU's messages and anything else."""
    time, rest = stamped(line)
    event = _EVENT.match(rest.rstrip())
    if not event:
        return None
    text = event["rest"]
    return TraceLine(event["name"], text, time, dict(_FIELD.findall(text)))


def parse(lines: Iterable[str]) -> Iterator[TraceLine]:
    for line in lines:
        parsed = parse_line(line)
        if parsed:
            yield parsed


@dataclass(frozen=True)
class PropagatedEvent:
    """`smmuv3_propagate_event`: QEMU put a record of the host's into the guest's queue."""

    name: str
    sid: int


def propagated(lines: Iterable[TraceLine]) -> list[PropagatedEvent]:
    """The events that QEMU forwarded, in order."""
    return [
        PropagatedEvent(line.text.split()[0].removeprefix("SMMU_EVT_"), line.number("sid"))
        for line in lines
        if line.name == "smmuv3_propagate_event"
    ]
