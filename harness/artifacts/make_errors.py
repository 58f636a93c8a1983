"""Find in what `make` printed what a person has to read when it failed."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: As many lines are shown at most, and so many of the end of a text without an error.
_MOST, _TAIL = 40, 12
#: What compilers, assemblers, linkers, shells and Kconfig say of an error.
_ERROR = re.compile(
    r":\d+: (?:fatal )?error: |(?:^|: )(?:fatal )?error: |: Error: |undefined reference to "
    r"|multiple definition of |: not found$|syntax error|can't open file|exceeds \d+ characters"
    r"|No space left on device"
)
#: What stands before an error, and belongs to it.
_BEFORE = re.compile(
    r"In file included from |\s+from \S+:\d+[:,]|.*: In function |.*: in function "
)
#: What stands after it: the line of the source, with a mark below, and notes.
_AFTER = re.compile(r"\s*\d* \|.*|.*: note: .*|.*\bmore undefined references to ")
#: What make says of a target that it could not make.
_GIVEN_UP = re.compile(r"make(?:\[\d+\])?: \*\*\* ")


def errors(lines: Sequence[str]) -> list[str]:
    """Return the lines of make's output that tell its errors, with the lines around them that
    belong to them. Without such lines, return make's own words, or else the end of the output."""
    found: list[str] = []
    before: list[str] = []
    within = False
    for line in lines:
        if _ERROR.search(line):
            found += [*before, line]
            within = True
        elif within and _AFTER.match(line):
            found.append(line)
        else:
            within = False
        before = [*before, line] if _BEFORE.match(line) and not within else []
    if len(found) > _MOST:
        return [*found[:_MOST], f"… and {len(found) - _MOST} more lines"]
    if found:
        return found
    # The first is about what failed, the others are about the folders that it is in.
    given_up = next((at for at, line in enumerate(lines) if _GIVEN_UP.match(line)), len(lines))
    return list(lines[max(0, given_up - _TAIL + 1) : given_up + 1])
