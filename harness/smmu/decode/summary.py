"""Count events by what they have in common: type, SMMU, StreamID, SubstreamID and client."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass

from harness.smmu.decode.found import Explained, Sighting, Stamp
from harness.smmu.decode.output import bdf, stamp_text
from harness.smmu.events import EventRecord, type_name

#: What an event has in common with others: type, SMMU, StreamID, SubstreamID and client.
Key = tuple[int, str | None, int | None, int | None, str | None]


@dataclass(slots=True)
class _Counted:
    """The events of one key. Addresses are input addresses; times and lines are the first's and
    the last's."""

    count: int
    first: Stamp
    last: Stamp
    first_line: int
    last_line: int
    lowest: int | None
    highest: int | None
    directions: set[str]


@functools.lru_cache(maxsize=4096)
def _of(word0: int, word1: int) -> tuple[int, int | None, int | None, str | None, int]:
    """Return type, StreamID, SubstreamID and direction of an event, and the mask of its input
    address, 0 if it has none."""
    record = EventRecord((word0, word1, (1 << 64) - 1, 0))
    return record.type, record.sid, record.ssid, record.rnw, record.input_addr or 0


class Tally:
    """The groups of the events of an input, in the order of their first events, and how often each
    message was there."""

    def __init__(self) -> None:
        self._groups: dict[Key, _Counted] = {}
        self._messages: dict[tuple[str, str | None], list[int]] = {}

    def add(self, found: Sighting | Explained) -> None:
        """Count what was found."""
        if isinstance(found, Explained):
            counted = self._messages.setdefault((found.name, found.smmu), [0, found.line, 0])
            counted[0] += 1
            counted[2] = found.line
        else:
            self._event(found)

    def _event(self, event: Sighting) -> None:
        w0, w1, w2, _ = event.words
        kind, sid, ssid, direction, mask = _of(w0, w1)
        if event.notes and not event.ssid_is_told:
            ssid = None
        key = (kind, event.smmu, sid, ssid, event.client)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Counted(
                0, event.time, None, event.line, 0, None, None, set()
            )
        group.count += 1
        group.last, group.last_line = event.time, event.line
        if direction:
            group.directions.add(direction)
        if mask:
            address = w2 & mask
            if group.lowest is None or address < group.lowest:
                group.lowest = address
            if group.highest is None or address > group.highest:
                group.highest = address

    def text(self) -> Iterator[str]:
        """Yield a line for each group, and for each kind of message."""
        for (kind, smmu, sid, ssid, client), group in self._groups.items():
            parts = [f"{group.count} × {type_name(kind)}"]
            if sid is not None:
                parts.append(f"sid {sid:#x}")
                if place := bdf(sid, client):
                    parts.append(f"bdf {place}")
            if ssid is not None:
                parts.append(f"ssid {ssid:#x}")
            if group.directions:
                parts.append(" and ".join(sorted(group.directions)))
            if group.lowest is not None:
                parts.append(f"iova {group.lowest:#x}")
                if group.highest != group.lowest:
                    parts[-1] += f" … {group.highest:#x}"
            if client:
                parts.append(f"client {client}")
            if smmu:
                parts.append(f"smmu {smmu}")
            if group.first is not None:
                parts.append(f"first {stamp_text(group.first)}")
                parts.append(f"last {stamp_text(group.last)}")
            parts.append(_lines(group.first_line, group.last_line))
            yield "  ".join(parts)
        for (name, smmu), (count, first, last) in self._messages.items():
            whose = f"  smmu {smmu}" if smmu else ""
            yield f"{count} × {name}{whose}  {_lines(first, last)}"

    def json(self) -> Iterator[str]:
        """Yield a line of JSON for each group, and for each kind of message."""
        for (kind, smmu, sid, ssid, client), group in self._groups.items():
            yield json.dumps(
                {
                    "kind": "events",
                    "count": group.count,
                    "type": kind,
                    "name": type_name(kind),
                    "sid": sid,
                    "ssid": ssid,
                    "bdf": None if sid is None else bdf(sid, client),
                    "directions": sorted(group.directions),
                    "lowest_input_addr": group.lowest,
                    "highest_input_addr": group.highest,
                    "client": client,
                    "smmu": smmu,
                    "first": group.first,
                    "last": group.last,
                    "first_line": group.first_line,
                    "last_line": group.last_line,
                }
            )
        for (name, smmu), (count, first, last) in self._messages.items():
            counted = {"kind": "messages", "count": count, "name": name, "smmu": smmu}
            yield json.dumps({**counted, "first_line": first, "last_line": last})


def _lines(first: int, last: int) -> str:
    return f"line {first}" if first == last else f"lines {first} to {last}"
