"""Run the programs that build artifacts. None outlives the process that runs it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from harness.artifacts import leashed
from harness.errors import LabError

#: How many lines of what a tool printed an error shows.
_TAIL = 12

#: How long an interrupted tool may take to end, in seconds: make removes what it has not finished.
_PATIENCE = 10.0

#: What tools say is searched for errors. Linux's Makefile drops LC_ALL.
_ENGLISH = dict.fromkeys(("LC_ALL", "LC_MESSAGES", "LANG"), "C")

EachLine = Callable[[int], None]


def last_lines(lines: Sequence[str]) -> Sequence[str]:
    """Return what an error shows of a tool's output, if nothing better is known."""
    return lines[-_TAIL:]


def run(
    argv: Sequence[str | Path],
    *,
    folder: Path | None = None,
    each_line: EachLine | None = None,
    what: str | None = None,
    log: Path | None = None,
    excerpt: Callable[[Sequence[str]], Sequence[str]] = last_lines,
    fix: str | None = None,
) -> None:
    """Run a tool to its end, in a folder. `each_line` is called with the number of each line of
    output, from 0; the file `log` gets all of it.

    Raises LabError when there is no such tool, or with an excerpt of its output when its status is
    not 0; `what` is then what failed, by default the command, and `fix` says what to do.
    """
    if shutil.which(argv[0]) is None:
        raise LabError(
            f"{argv[0]} is missing", fix="run `make setup`, or `hil doctor` to see what is missing"
        )
    lines: list[str] = []
    opened = log.open("w", encoding="utf-8") if log else nullcontext()
    with opened as copy, _started(argv, folder) as process:
        assert process.stdout is not None
        # Whatever the locale: sources have names in UTF-8, and what is no text in it is replaced.
        output = io.TextIOWrapper(process.stdout, encoding="utf-8", errors="replace")
        for count, line in enumerate(output):
            lines.append(line.rstrip())
            if copy:
                copy.write(line)
            if each_line:
                each_line(count)
    if process.returncode != 0:
        failed = what or f"`{' '.join(map(str, argv))}`"
        said = "".join(f"\n  {line}" for line in excerpt(lines))
        raise LabError(f"{failed} failed with status {process.returncode}:{said}", fix=fix)


@contextmanager
def _started(argv: Sequence[str | Path], folder: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a running tool, and wait for its end afterwards. If the body raises, such as at Ctrl-C,
    end it with all that it has started."""
    process = leashed.start(argv, subprocess.PIPE, folder=folder, environment=os.environ | _ENGLISH)
    with process:
        try:
            yield process
        except BaseException:
            # Not only its group: timeout(1) makes one of its own.
            leashed.end(process, _PATIENCE)
            raise
