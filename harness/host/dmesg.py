"""What dmesg(1) shows, by time: in its own form, "[seconds since the boot] text"."""

from __future__ import annotations

import math
import re

_TIME = re.compile(r"^\[\s*(\d+\.\d+)\]", re.MULTILINE)


def last_time(text: str) -> float:
    """Of the last line, in seconds; minus infinity for an empty log."""
    times = _TIME.findall(text)
    return float(times[-1]) if times else -math.inf


def after(text: str, time: float) -> str:
    """The lines of later than `time`; those without a time go with the line before them."""
    kept, keep = [], time == -math.inf
    for line in text.splitlines(keepends=True):
        found = _TIME.match(line)
        keep = float(found[1]) > time if found else keep
        if keep:
            kept.append(line)
    return "".join(kept)
