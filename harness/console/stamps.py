"""The form of a recorded console: the time before each line, as in

    2026-11-28T20:26:34.123456Z [   12.345678] Kernel panic - not syncing: …

The time is when the line's first byte came, by this machine's clock, in UTC. Lines of the
harness's own begin with `hil: `. This module does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

#: How the harness's own lines begin.
NOTE = "hil: "
_STAMP = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (.*)$")
#: What a terminal obeys and nobody reads: ECMA-48's control sequences, of which firmware prints
#: many, and other control characters.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\^_]|[\x00-\x08\x0b-\x1f\x7f]")


def stamp(time: float) -> str:
    """Return a time in seconds since 1970 as it stands before a line."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%M:%S.%fZ} "


class Stamper:
    """Puts the time before each line of what comes in pieces."""

    def __init__(self) -> None:
        self._in_line = False

    def stamped(self, data: bytes, now: float) -> bytes:
        """Return a piece that came now, with the time before each line that begins in it. A
        console ends lines with a carriage return besides, which is left out."""
        before = stamp(now).encode()
        out = bytearray()
        for line in data.replace(b"\r", b"").splitlines(keepends=True):
            out += line if self._in_line else before + line
            self._in_line = not line.endswith(b"\n")
        return bytes(out)

    def noted(self, text: str, now: float) -> bytes:
        """Return a line of the harness's own, which ends the line that the host is in."""
        one_line = " ".join(text.split())
        begin = b"\n" if self._in_line else b""
        self._in_line = False
        return begin + f"{stamp(now)}{NOTE}{one_line}\n".encode(errors="backslashreplace")


def parse(recorded: str) -> Iterator[tuple[float | None, str]]:
    """Yield each line of a recording: when it came, in seconds since 1970, or None if it has no
    time; and its text without what only a terminal obeys."""
    # Not splitlines(): a form feed ends no line here.
    for line in recorded.removesuffix("\n").split("\n") if recorded else ():
        found = _STAMP.match(line)
        when = datetime.fromisoformat(found[1]).timestamp() if found else None
        yield when, _CONTROL.sub("", found[2] if found else line)
