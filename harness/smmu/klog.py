"""Event records out of Linux's kernel log (drivers/iommu/arm/arm-smmu-v3, dump of an event).

The driver prints a head line and the record's four words, one a line:

    arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:
    arm-smmu-v3 arm-smmu-v3.0.auto: <tab>0x0000090000000010
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from harness.smmu.events import EventRecord

_HEAD = re.compile(r"arm-smmu-v3 (?P<smmu>\S+): event (?P<type>0x[0-9a-f]+) received:\s*$")
_WORD = re.compile(r"arm-smmu-v3 (?P<smmu>\S+):\s+(?P<word>0x[0-9a-f]{16})\s*$")
#: dmesg's and the console's time stamps, a raw priority, journalctl's and syslog's "kernel:".
PREFIX = re.compile(r"^(?:<\d+>)?\[\s*\d+\.\d+\]|^(?:<\d+>)?\[\w{3} \w{3} .*?\]|\bkernel: ")


@dataclass(frozen=True)
class LoggedEvent:
    """A record as a kernel printed it; `line` is its head line's number, from 1."""

    smmu: str
    record: EventRecord
    line: int


@dataclass(frozen=True)
class Broken:
    """Something that began as an event and is none."""

    line: int
    reason: str


class KernelLogReader:
    """Feed it lines; it yields whole events and what broke. Words of one SMMU's event may have
    other lines between them. Call `end` after the last line."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, int, list[int]]] = {}

    def feed(self, number: int, line: str) -> LoggedEvent | Broken | None:
        head = _HEAD.search(line)
        if head:
            unfinished = self._open.pop(head["smmu"], None)
            self._open[head["smmu"]] = (number, int(head["type"], 16), [])
            return _unfinished(unfinished) if unfinished else None
        word = _WORD.search(line)
        if not word:
            return None
        smmu = word["smmu"]
        if smmu not in self._open:
            return Broken(number, f"a record's word of {smmu} without its `event … received:`")
        start, kind, words = self._open[smmu]
        words.append(int(word["word"], 16))
        if len(words) < 4:
            return None
        del self._open[smmu]
        record = EventRecord((words[0], words[1], words[2], words[3]))
        if record.type != kind:
            return Broken(start, f"says event {kind:#x}, but its words are of {record.type:#x}")
        return LoggedEvent(smmu, record, start)

    def end(self) -> Iterator[Broken]:
        for unfinished in self._open.values():
            yield _unfinished(unfinished)
        self._open.clear()


def _unfinished(state: tuple[int, int, list[int]]) -> Broken:
    start, kind, words = state
    return Broken(start, f"event {kind:#x} has {len(words)} of its 4 words")


def logged_events(text: str) -> list[LoggedEvent]:
    """All whole events of a log. A log is rate-limited: what is in it happened, what is not in
    it may have happened too."""
    reader = KernelLogReader()
    found = (reader.feed(number, line) for number, line in enumerate(text.splitlines(), start=1))
    return [event for event in found if isinstance(event, LoggedEvent)]
