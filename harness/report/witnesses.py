"""Ask each witness what it saw of a test, and draw the answers as a timeline on the host's clock.

QEMU and the boundary stamp their logs by that clock. The other clocks are compared with it: this
machine's with `date` on the host, and those of the kernels' logs by a marker line that is written
into the log (/dev/kmsg) at a known time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from harness import kernel_log
from harness.boundary.client import Passage, entries
from harness.boundary.on_host.rules import Merge, Pass
from harness.console import stamps
from harness.guest import mmio
from harness.guest.guest import Guest
from harness.guest.journal import CommandRun, Growth
from harness.host.connection import CommandFailedError, Connection
from harness.host.host import Host, HostConsole
from harness.host.session import Session
from harness.report.notes import reason
from harness.report.timeline import Lane, Look, Mark, draw
from harness.smmu import trace
from harness.smmu.ring import Ring
from harness.smmu.vevents import VEvent

#: Only the end of a log is drawn.
_MOST_BYTES, _MOST_LINES = 1 << 20, 400
#: How long a guest's kernel log is waited for, in seconds. It is short because most guests belong
#: to tests that passed.
_ANSWER_SECONDS = 3.0

_STAMP = re.compile(r"^\[ *(\d+\.\d{6})\] (.*)$", re.MULTILINE)
_LOSS = re.compile(r"vEVENTQ.*(?:lost|overflowed|short read|read failed)")
_EVENT = re.compile(r"arm-smmu-v3 \S+: event 0x[0-9a-f]+ received:")
_CLOCK = "hil: clock"
#: The shell command that writes the marker line into a kernel's log.
_SAY_CLOCK = f"echo '{_CLOCK}' >/dev/kmsg"
_FILTER = f"grep -E '{_CLOCK}|: event 0x|{kernel_log.CRASH}'"


@dataclass(frozen=True)
class Offset:
    """The difference of the host's clock and another: add `seconds` to the other's time to have the
    host's, within `error` seconds."""

    seconds: float
    error: float


#: A witness's marks, and the number of its events in words.
Sighting = tuple[list[Mark], str]


def timeline(host: Host, guests: Sequence[Guest], *, kernels: bool) -> str:
    """Return an SVG of what happened since the guests were attached; an empty text when no fault
    source was triggered and no event queue moved. A witness that does not answer is left out, and
    the picture says so. With `kernels` it includes the kernels' logs, which take time to read.

    Raises LabError when the host does not answer.
    """
    if not any(_triggers(guest) or guest.journal.growths for guest in guests):
        return ""
    here = clock_here(host.session)
    picture = _Picture(here, min(guest.journal.started for guest in guests) + here.seconds)
    for guest in guests:
        whose = f"{guest.name}: " if len(guests) > 1 else ""
        logs = _Logs.read(guest)
        picture.add(f"{whose}fault source", partial(_fault_source, guest))
        if guest.spec.boundary:
            picture.add(f"{whose}boundary", partial(_boundary, logs.boundary))
        picture.add(f"{whose}QEMU's trace", partial(_trace, logs.trace))
        picture.add(f"{whose}QEMU's messages", partial(_messages, logs.messages))
        picture.add(f"{whose}queue memory", partial(_queue, guest))
        if kernels:
            picture.add(f"{whose}guest's log", partial(_guest_log, guest))
    if kernels:
        picture.add("host's log", partial(_host_log, host.connection))
        if host.console:
            picture.add("host's console", partial(_host_console, host.console))
    return draw(picture.lanes, picture.notes)


@dataclass
class _Picture:
    """The lanes and notes of a picture. `here` is the offset of this machine's clock; the picture
    begins at `since`, by the host's clock."""

    here: Offset
    since: float
    lanes: list[Lane] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.note_clock("this machine's", self.here)

    def note_clock(self, whose: str, clock: Offset) -> None:
        error = clock.error * 1000
        self.notes.append(f"{whose} clock is known to ±{error:.0f} ms of the host's")

    def add(self, name: str, witness: Callable[[_Picture], Sighting]) -> None:
        try:
            marks, total = witness(self)
        except Exception as problem:
            self.notes.append(f"{name} is not shown: {reason(problem)[:110]}")
            return
        self.lanes.append(Lane(name, marks, total))

    def seen(self, marks: Iterable[Mark]) -> list[Mark]:
        """Return the marks of this test; logs go back further."""
        return [mark for mark in marks if mark.last >= self.since]


# -- clocks ----------------------------------------------------------------------------------


def clock_here(session: Session) -> Offset:
    """Return the offset of this machine's clock (time.time). Raises LabError."""
    before = time.time()
    said = session.clock()
    after = time.time()
    return Offset(said - (before + after) / 2, (after - before) / 2)


def log_clock(log: str, now: float, error: float) -> Offset:
    """Return the offset of a kernel log's stamps. The host's clock was at `now`, within `error`
    seconds, when the marker line was written into the log. Raises ValueError when the log does not
    have it."""
    stamps = [float(stamp) for stamp, text in _STAMP.findall(log) if text == _CLOCK]
    if not stamps:
        raise ValueError(
            "its clock is unknown: the marker line written to /dev/kmsg is missing from the log"
        )
    return Offset(now - stamps[-1], error)


def log_marks(log: str, clock: Offset) -> list[Mark]:
    """Return a mark for each line of a kernel log but the marker line."""
    return [
        Mark(float(stamp) + clock.seconds, text, _log_look(text))
        for stamp, text in _STAMP.findall(log)
        if text != _CLOCK
    ]


def _log_look(text: str) -> Look:
    if re.search(kernel_log.CRASH, text):
        return Look.LOST
    return Look.EVENT if _EVENT.search(text) else Look.CONTEXT


# -- witnesses -------------------------------------------------------------------------------


def _triggers(guest: Guest) -> list[CommandRun]:
    """Return the guest's commands that write to registers: what makes a fault source go."""
    return [one for one in guest.journal.commands if mmio.writes(one.command)]


def _fault_source(guest: Guest, picture: _Picture) -> Sighting:
    add = picture.here.seconds
    marks = [
        Mark(one.start + add, (one.what or one.command)[:300], end=one.end + add)
        for one in _triggers(guest)
    ]
    return marks, f"{len(marks)} triggered"


def _boundary(log: _Log, picture: _Picture) -> Sighting:
    """Return the boundary's marks: each shows when records came and how long they were kept."""
    marks = []
    got = sent = 0
    for entry in entries(log.lines):
        if entry.time < picture.since:
            continue
        if isinstance(entry, Passage):
            got, sent = got + len(entry.got), sent + len(entry.sent)
            marks.append(Mark(entry.arrived, str(entry), passage_look(entry), end=entry.time))
        else:
            marks.append(Mark(entry.time, str(entry), Look.CONTEXT))
    return marks, log.which + (f"{got} records" if got == sent else f"{got}, {sent} given on")


def passage_look(passage: Passage) -> Look:
    """Return the look of records by what the boundary did with them."""
    if passage.did == Merge.name:
        return Look.CHANGED
    headers = any(len(one) >= 8 and VEvent.decode(one).is_lost_events for one in passage.sent)
    if headers or len(passage.sent) < len(passage.got):
        return Look.LOST
    return Look.EVENT if passage.did == Pass.name and passage.sent == passage.got else Look.CHANGED


def _trace(log: _Log, picture: _Picture) -> Sighting:
    marks = picture.seen(
        Mark(line.time, f"{line.name} {line.text}", _trace_look(line))
        for line in trace.parse(log.lines)
        if line.time is not None
    )
    return marks, f"{log.which}{_count(marks)} forwarded"


def _trace_look(line: trace.TraceLine) -> Look:
    return Look.EVENT if line.name == trace.TraceEvent.PROPAGATE_EVENT else Look.CONTEXT


def _messages(log: _Log, picture: _Picture) -> Sighting:
    marks = picture.seen(
        Mark(when, text, Look.LOST if _LOSS.search(text) else Look.CONTEXT)
        for when, text in map(trace.stamped, log.lines)
        if when is not None
    )
    lost = _count(marks, Look.LOST)
    return marks, f"{log.which}{lost} of loss" if lost else ""


def _queue(guest: Guest, picture: _Picture) -> Sighting:
    """Return the marks of an event queue: records came between two readings of PROD that differ."""
    add = picture.here.seconds
    marks = []
    total = 0
    sizes = {smmu: guest.event_queue(smmu).geometry() for smmu in guest.journal.smmus}
    for growth in guest.journal.growths:
        count = grown(sizes[growth.smmu], growth)
        total += count
        text = f"smmu{growth.smmu}: {count} more, PROD {growth.old:#x} -> {growth.new:#x}"
        marks.append(Mark(growth.seen + add, text, begin=growth.before + add))
    return marks, f"{total} records"


def grown(size: Ring, growth: Growth) -> int:
    """Return how many records came between two readings. PROD only goes back when the guest resets
    its SMMU; then it starts from 0."""
    count = size.distance(growth.old, growth.new)
    return count if count <= size.entries else size.index(growth.new)


def _guest_log(guest: Guest, picture: _Picture) -> Sighting:
    """Return the marks of the guest's kernel log: the events that it logged, and crashes."""
    before = time.time()
    guest.run(_SAY_CLOCK, timeout=_ANSWER_SECONDS)
    after = time.time()
    log = guest.run(f"dmesg | {_FILTER}", timeout=_ANSWER_SECONDS).text
    now = (before + after) / 2 + picture.here.seconds
    clock = log_clock(log, now, (after - before) / 2 + picture.here.error)
    picture.note_clock(f"{guest.name}'s", clock)
    marks = picture.seen(log_marks(log, clock))
    return marks, f"{_count(marks)} logged"


def _host_log(connection: Connection, picture: _Picture) -> Sighting:
    said = connection.run(f"{_SAY_CLOCK}; date +%s.%N; dmesg | tail -n {_MOST_LINES}").text
    now, _, log = said.partition("\n")
    marks = picture.seen(log_marks(log, log_clock(log, float(now), 0.0)))
    return marks, f"{_count(marks)} logged"


def _host_console(console: HostConsole, picture: _Picture) -> Sighting:
    """Return a mark for each line of the console that was recorded, by this machine's clock."""
    add = picture.here.seconds
    marks = picture.seen(
        Mark(when + add, text, _log_look(text))
        for when, text in stamps.parse(console.stamped()[-_MOST_BYTES:])
        if when is not None and text
    )
    died = _count(marks, Look.LOST)
    return marks, f"{died} of a crash" if died else ""


def _count(marks: Sequence[Mark], look: Look = Look.EVENT) -> int:
    return sum(mark.look is look for mark in marks)


@dataclass(frozen=True)
class _Log:
    """The whole lines at the end of a log. `which` goes before a count of them: "last " when the
    log's beginning was left out, else empty."""

    lines: list[str]
    which: str

    @classmethod
    def ending(cls, text: str) -> _Log:
        lines = text.splitlines()
        return cls(lines[1:], "last ") if len(text) >= _MOST_BYTES else cls(lines, "")


@dataclass(frozen=True)
class _Logs:
    """The logs about a guest that are on the host."""

    boundary: _Log
    trace: _Log
    messages: _Log

    @classmethod
    def read(cls, guest: Guest) -> _Logs:
        """Read what a guest's logs end with. Raises LabError."""
        paths = (guest.paths.boundary_log, guest.paths.trace_log, guest.paths.qemu_log)
        boundary, traced, messages = (_Log.ending(_end(guest, path)) for path in paths)
        return cls(boundary, traced, messages)


def _end(guest: Guest, path: str) -> str:
    try:
        return guest.host_file(path, offset=-_MOST_BYTES)
    except CommandFailedError:  # there is no such log
        return ""
