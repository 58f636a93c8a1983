"""Run the programs that build artifacts. None outlives the process that runs it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.artifacts import leash
from harness.errors import LabError

#: How many lines of what a tool printed an error shows.
_TAIL = 12


def run(
    argv: Sequence[str | Path],
    *,
    folder: Path | None = None,
    each_line: Callable[[int], None] | None = None,
    fix: str | None = None,
) -> None:
    """Run a tool to its end, in a folder. `each_line` is called with the number of each line of
    output, from 0.

    Raises LabError when there is no such tool, or with the last lines of its output when its status
    is not 0; `fix` says what to do then.
    """
    if shutil.which(argv[0]) is None:
        raise LabError(
            f"{argv[0]} is missing", fix="run `make setup`, or `hil doctor` to see what is missing"
        )
    tail: deque[str] = deque(maxlen=_TAIL)
    with _started(argv, folder) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout):
            tail.append(line.rstrip())
            if each_line:
                each_line(count)
    if process.returncode != 0:
        command = " ".join(map(str, argv))
        said = "".join(f"\n  {line}" for line in tail)
        raise LabError(f"`{command}` failed with status {process.returncode}:{said}", fix=fix)


@contextmanager
def _started(argv: Sequence[str | Path], folder: Path | None) -> Iterator[subprocess.Popen[str]]:
    """Yield a running tool, and wait for its end afterwards. If the body raises, such as at Ctrl-C,
    end it with all that it has started."""
    owner = os.pidfd_open(os.getpid())
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", leash.__file__, str(owner), *argv],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=[owner],
            start_new_session=True,
        )
    finally:
        os.close(owner)
    with process:
        try:
            yield process
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
