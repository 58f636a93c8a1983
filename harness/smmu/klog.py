"""Read event records from Linux's kernel log (drivers/iommu/arm/arm-smmu-v3, dump of an event).

The driver prints a head line and the record's four words, each on its own line:

    arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:
    arm-smmu-v3 arm-smmu-v3.0.auto: <tab>0x0000090000000010

Newer kernels print the event in words after that. It is the reader of `hil decode` that reads both.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.smmu.decode.forms import Form
from harness.smmu.decode.found import Sighting
from harness.smmu.decode.reader import read
from harness.smmu.events import EventRecord


@dataclass(frozen=True)
class LoggedEvent:
    """A record that a kernel printed. `line` is the number of its head line, from 1; `client` is
    the device that the kernel named, if it named one."""

    smmu: str
    record: EventRecord
    line: int
    client: str | None = None


def logged_events(text: str) -> list[LoggedEvent]:
    """Return all whole events of a log, of which the words are there. The log is rate-limited: an
    event that is in it happened, and one that is not in it may have happened too."""
    return [
        LoggedEvent(found.smmu, found.record, found.line, found.client)
        for found in read([text.encode(errors="replace")], Form.LOG)
        if isinstance(found, Sighting) and found.smmu is not None and not found.from_text
    ]
