"""What the witnesses saw, on one time axis: an SVG in which a lost or late event is visible.

Pure: marks in, text out. Times are seconds of one clock, the host's.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr


class Lane(enum.Enum):
    """A witness, from the device to the guest."""

    GADGET = "gadget"
    HOST_LOG = "host's log"
    BOUNDARY = "boundary"
    TRACE = "QEMU's trace"
    QUEUE = "queue memory"
    GUEST_LOG = "guest's log"


class Look(enum.Enum):
    """How a mark is drawn, and what that means."""

    PLAIN = "#3b6ea5"
    CHANGED = "#c77d0a"
    LOST = "#c0262d"


@dataclass(frozen=True)
class Mark:
    """Something that a witness saw. One with an `end` took that long."""

    time: float
    lane: Lane
    text: str
    look: Look = Look.PLAIN
    end: float | None = None


WIDTH, LEFT, RIGHT, TOP, LANE_HEIGHT, BOTTOM = 960, 120, 20, 16, 44, 34
_TICKS = 6
#: Marks closer than this many pixels are drawn as one, with their number.
_NEAR = 5.0


def draw(marks: Sequence[Mark]) -> str:
    """The picture; its text is read on hovering. An empty axis for no marks."""
    lanes = [lane for lane in Lane if any(mark.lane is lane for mark in marks)] or [Lane.QUEUE]
    start = min((mark.time for mark in marks), default=0.0)
    end = max((mark.end or mark.time for mark in marks), default=start)
    span = max(end - start, 1e-3)
    height = TOP + LANE_HEIGHT * len(lanes) + BOTTOM

    def x(time: float) -> float:
        return LEFT + (time - start) / span * (WIDTH - LEFT - RIGHT)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for row, lane in enumerate(lanes):
        y = TOP + LANE_HEIGHT * row + LANE_HEIGHT / 2
        out.append(f'<text x="8" y="{y + 4:.0f}" fill="#222222">{escape(lane.value)}</text>')
        out.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.0f}" y2="{y:.0f}" stroke="#d5d9de"/>'
        )
        mine = sorted((mark for mark in marks if mark.lane is lane), key=lambda mark: mark.time)
        for group in _near(mine, x):
            out.append(_draw_group(group, x, y))
    out += _axis(start, span, x, height)
    return "\n".join([*out, "</svg>\n"])


def _near(marks: Sequence[Mark], x: Callable[[float], float]) -> Iterator[list[Mark]]:
    """Marks that would cover each other, together; those that look different stay apart."""
    group: list[Mark] = []
    for mark in marks:
        if group and (x(mark.time) - x(group[0].time) > _NEAR or mark.look is not group[0].look):
            yield group
            group = []
        group.append(mark)
    if group:
        yield group


def _draw_group(group: Sequence[Mark], x: Callable[[float], float], y: float) -> str:
    first = group[0]
    left, right = x(first.time), x(max(mark.end or mark.time for mark in group))
    shown = [mark.text for mark in group[:20]] + (
        [f"… {len(group)} in all"] if len(group) > 20 else []
    )
    parts = [f"<g><title>{escape(chr(10).join(shown))}</title>"]
    if right - left > _NEAR:
        parts.append(
            f'<rect x="{left:.1f}" y="{y - 3:.1f}" width="{right - left:.1f}" height="6" '
            f'fill={quoteattr(first.look.value)} opacity="0.35"/>'
        )
    parts.append(f'<circle cx="{left:.1f}" cy="{y:.1f}" r="5" fill={quoteattr(first.look.value)}/>')
    if len(group) > 1:
        parts.append(f'<text x="{left + 7:.1f}" y="{y - 8:.1f}" fill="#222222">{len(group)}</text>')
    return "".join([*parts, "</g>"])


def _axis(start: float, span: float, x: Callable[[float], float], height: int) -> Iterator[str]:
    y = height - BOTTOM
    for tick in range(_TICKS + 1):
        time = start + span * tick / _TICKS
        yield f'<line x1="{x(time):.1f}" x2="{x(time):.1f}" y1="{y}" y2="{y + 5}" stroke="#555555"/>'
        yield (
            f'<text x="{x(time):.1f}" y="{y + 18}" text-anchor="middle" fill="#555555">'
            f"{_seconds(time - start, span)}</text>"
        )


def _seconds(value: float, span: float) -> str:
    return f"{value * 1000:.1f} ms" if span < 1 else f"{value:.2f} s"


def by_lane(marks: Sequence[Mark]) -> dict[Lane, int]:
    """How many marks each witness has: the picture's caption."""
    counts: dict[Lane, int] = defaultdict(int)
    for mark in marks:
        counts[mark.lane] += 1
    return dict(counts)
