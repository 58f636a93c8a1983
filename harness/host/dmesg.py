"""Cut the output of dmesg(1) by time. A line is "[seconds since the boot] text"."""

from __future__ import annotations

import math
import re

_TIME = re.compile(r"^\[\s*(\d+\.\d+)\]", re.MULTILINE)


def last_time(text: str) -> float:
    """Return the time of the last line, in seconds since the boot; minus infinity for an empty
    log."""
    times = _TIME.findall(text)
    return float(times[-1]) if times else -math.inf


def after(text: str, time: float) -> str:
    """Return the lines that are later than `time`, in seconds since the boot. A line without a time
    belongs to the line before it."""
    kept, keep = [], time == -math.inf
    for line in text.splitlines(keepends=True):
        found = _TIME.match(line)
        keep = float(found[1]) > time if found else keep
        if keep:
            kept.append(line)
    return "".join(kept)
