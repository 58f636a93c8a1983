"""Draw what the witnesses saw on one time axis, as an SVG that makes lost and late events visible.

This module does no I/O: marks go in, text comes out. Times are in seconds of one clock, the host's.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.report.markup import xml


class Look(enum.Enum):
    """The colour of a mark, by what the mark means."""

    EVENT = "#3b6ea5"
    #: An event that is late, altered, merged with another or made up.
    CHANGED = "#c77d0a"
    #: A lost event, a message that events were lost, or a crash.
    LOST = "#c0262d"
    #: Anything but an event.
    CONTEXT = "#9aa3ad"


@dataclass(frozen=True)
class Mark:
    """Something that a witness saw. One with an `end` lasted from `time` until then. One with a
    `begin` happened at an unknown time between then and `time`."""

    time: float
    text: str
    look: Look = Look.EVENT
    begin: float | None = None
    end: float | None = None

    @property
    def first(self) -> float:
        return self.time if self.begin is None else self.begin

    @property
    def last(self) -> float:
        return self.time if self.end is None else self.end


@dataclass(frozen=True)
class Lane:
    """A row of the picture: the name of a witness, its marks, and the number of its events in
    words."""

    name: str
    marks: Sequence[Mark]
    total: str = ""


_WIDTH, _LEFT, _RIGHT, _TOP, _LANE, _AXIS, _LINE = 960, 150, 110, 16, 44, 34, 17
_TICKS = 6
#: Marks closer than this many pixels are drawn as one, with their number.
_NEAR = 9.0
#: The width of a digit, in pixels.
_DIGIT = 7.0
#: How many marks a group's tooltip lists.
_SHOWN = 12


def draw(lanes: Sequence[Lane], notes: Sequence[str] = ()) -> str:
    """Return the picture, with notes below it. A mark shows its text when it is pointed at.

    The axis spans all marks but those of Look.CONTEXT, which are drawn only within that span. When
    there are no others, return an empty text.
    """
    events = [mark for lane in lanes for mark in lane.marks if mark.look is not Look.CONTEXT]
    if not events:
        return ""
    start, end = min(mark.first for mark in events), max(mark.last for mark in events)
    span = max(end - start, 1e-3)
    start, span = start - span / 20, span * 1.1
    axis = _TOP + _LANE * len(lanes)
    height = axis + _AXIS + _LINE * len(notes)

    def x(time: float) -> float:
        return _LEFT + (time - start) / span * (_WIDTH - _LEFT - _RIGHT)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for row, lane in enumerate(lanes):
        y = _TOP + _LANE * row + _LANE / 2
        out.append(_text(8, y + 4, lane.name, fill="#222222"))
        out.append(_text(_WIDTH - _RIGHT + 10, y + 4, lane.total, fill="#222222"))
        out.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "#d5d9de"))
        shown = [mark for mark in lane.marks if start <= mark.first and mark.last <= start + span]
        out += _draw_groups(_near(shown, x), x, y)
    for tick in range(_TICKS + 1):
        time = start + span * tick / _TICKS
        out.append(_line(x(time), axis, x(time), axis + 5, "#555555"))
        out.append(_text(x(time), axis + 18, _seconds(time - start, span), anchor="middle"))
    for number, note in enumerate(notes):
        out.append(_text(8, axis + _AXIS + 6 + _LINE * number, note))
    return "\n".join([*out, "</svg>\n"])


def _near(marks: Sequence[Mark], x: Callable[[float], float]) -> Iterator[list[Mark]]:
    """Yield groups of marks that would cover each other. Marks of a different look are never in one
    group."""
    for look in (Look.CONTEXT, Look.EVENT, Look.CHANGED, Look.LOST):
        group: list[Mark] = []
        alike = (mark for mark in marks if mark.look is look)
        for mark in sorted(alike, key=lambda one: one.time):
            if group and x(mark.time) - x(group[0].time) > _NEAR:
                yield group
                group = []
            group.append(mark)
        if group:
            yield group


def _draw_groups(
    groups: Iterable[Sequence[Mark]], x: Callable[[float], float], y: float
) -> Iterator[str]:
    """Yield the drawing of each group, with its number above unless that would cover the number
    before it."""
    free = 0.0
    for group in sorted(groups, key=lambda one: one[0].time):
        at, number = x(group[0].time) - 3, ""
        if len(group) > 1 and at >= free:
            number = str(len(group))
            free = at + _DIGIT * (len(number) + 0.5)
        yield _draw_group(group, number, x, y)


def _draw_group(group: Sequence[Mark], number: str, x: Callable[[float], float], y: float) -> str:
    colour = group[0].look.value
    at = x(group[0].time)
    left, right = x(min(mark.first for mark in group)), x(max(mark.last for mark in group))
    shown = [mark.text for mark in group[:_SHOWN]]
    if len(group) > _SHOWN:
        shown.append(f"… {len(group)} in all")
    parts = [f"<g><title>{xml(chr(10).join(shown))}</title>"]
    if right - left > _NEAR:
        parts.append(
            f'<rect x="{left:.1f}" y="{y - 3:.1f}" width="{right - left:.1f}" height="6" '
            f'fill="{colour}" opacity="0.35"/>'
        )
    parts.append(f'<circle cx="{at:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
    if number:
        parts.append(_text(at - 3, y - 9, number, fill=colour))
    return "".join([*parts, "</g>"])


def _text(x: float, y: float, text: str, fill: str = "#555555", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" text-anchor="{anchor}">{xml(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"/>'


def _seconds(value: float, span: float) -> str:
    return f"{value * 1000:.1f} ms" if span < 1 else f"{value:.2f} s"
