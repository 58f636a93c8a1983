"""Keep the account of an input: what was found, what is damaged, and what nobody understood."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.smmu.decode.found import Damaged, Unknown
from harness.smmu.decode.output import known_text

#: How many lines are named of what happened more often.
_NAMED = 8
#: A line that is quoted is cut, in characters.
_QUOTED = 100


@dataclass
class _Kind:
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.lines) <= _NAMED:
            self.lines.append(line)

    def rest(self) -> str:
        """Return the lines of all but the first."""
        lines = self.lines[1 : _NAMED + 1]
        more = self.count - 1 - len(lines)
        return ", ".join(map(str, lines)) + (f" and {more} more" if more else "")


@dataclass
class Closing:
    """The numbers of the closing line. `damage` and `unknown` are told once for each kind, at its
    first line; the rest is told at the end."""

    events: int = 0
    messages: int = 0
    damage: dict[str, _Kind] = field(default_factory=dict)
    unknown: dict[str, _Kind] = field(default_factory=dict)

    def damaged(self, found: Damaged) -> str | None:
        """Count damage; return what is to be said of it now, or None."""
        kind = self.damage.setdefault(found.what, _Kind())
        kind.add(found.line)
        if kind.count > 1:
            return None
        known = known_text(found)
        lines = f"{found.line}-{found.last}" if found.last > found.line else str(found.line)
        return f"{lines}: {found.reason}" + (f"; known: {known}" if known else "")

    def not_understood(self, found: Unknown) -> str | None:
        """Count a line that is not understood; return what is to be said of it now, or None."""
        kind = self.unknown.setdefault(found.what, _Kind())
        kind.add(found.line)
        if kind.count > 1:
            return None
        text = found.text if len(found.text) <= _QUOTED else f"{found.text[:_QUOTED]}…"
        return f"{found.line}: not understood: {text.strip()!r}"

    @property
    def failed(self) -> bool:
        """Return whether anything is damaged."""
        return bool(self.damage)

    def rest(self) -> list[str]:
        """Return what else there was of each kind, a line each."""
        return [
            f"{kind.count - 1} more {what}: lines {kind.rest()}"
            for what, kind in (*self.damage.items(), *self.unknown.items())
            if kind.count > 1
        ]

    def closing(self, lines: int, *, raw: bool = False) -> str:
        """Return the closing line."""
        broken = sum(kind.count for kind in self.damage.values())
        strange = sum(kind.count for kind in self.unknown.values())
        said = [
            _counted(self.events, "event"),
            f"{_counted(self.messages, 'message')} explained",
            *([f"{broken} damaged"] if broken else []),
            f"{_counted(strange, 'line')} not understood",
        ]
        return f"{', '.join(said)}; of {_counted(lines, 'slot' if raw else 'line')}"


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's' if number else ''}"
