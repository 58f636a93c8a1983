"""Read event records from Linux's kernel log (drivers/iommu/arm/arm-smmu-v3, dump of an event).

The driver prints a head line and the record's four words, each on its own line:

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
#: How a line of a kernel log begins: with a time stamp of dmesg or of the console, perhaps after a
#: raw priority, or with the "kernel:" of journalctl or syslog.
PREFIX = re.compile(r"^(?:<\d+>)?\[\s*\d+\.\d+\]|^(?:<\d+>)?\[\w{3} \w{3} .*?\]|\bkernel: ")


@dataclass(frozen=True)
class LoggedEvent:
    """A record that a kernel printed; `line` is the number of its head line, from 1."""

    smmu: str
    record: EventRecord
    line: int


@dataclass(frozen=True)
class Broken:
    """Text that began as an event and is not a whole one; `line` is the number of its line, from
    1."""

    line: int
    reason: str


class KernelLogReader:
    """Reads events from lines that are fed to it. Between the words of one SMMU's event there may
    be other lines. `end` must be called after the last line."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, int, list[int]]] = {}

    def feed(self, number: int, line: str) -> LoggedEvent | Broken | None:
        """Take the next line and its number; return the event that it completes, or that it shows
        to be broken, or None."""
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
            return Broken(
                number, f"a word of a record of {smmu}, but no `event … received:` before"
            )
        start, kind, words = self._open[smmu]
        words.append(int(word["word"], 16))
        if len(words) < 4:
            return None
        del self._open[smmu]
        record = EventRecord((words[0], words[1], words[2], words[3]))
        if record.type != kind:
            return Broken(start, f"says event {kind:#x}, but its words are event {record.type:#x}")
        return LoggedEvent(smmu, record, start)

    def end(self) -> Iterator[Broken]:
        """Yield the events whose words are incomplete."""
        for unfinished in self._open.values():
            yield _unfinished(unfinished)
        self._open.clear()


def _unfinished(state: tuple[int, int, list[int]]) -> Broken:
    start, kind, words = state
    return Broken(start, f"event {kind:#x} has {len(words)} of its 4 words")


def logged_events(text: str) -> list[LoggedEvent]:
    """Return all whole events of a log. The log is rate-limited: an event that is in it happened,
    and one that is not in it may have happened too."""
    reader = KernelLogReader()
    found = (reader.feed(number, line) for number, line in enumerate(text.splitlines(), start=1))
    return [event for event in found if isinstance(event, LoggedEvent)]
