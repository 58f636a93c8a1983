"""Programs that benchmarks start, and how long they take."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from harness.errors import LabError

#: How long an interrupted program may take to clean up, in seconds.
_END_SECONDS = 30.0


def seconds_of(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    started = time.monotonic()
    action()
    return time.monotonic() - started


def hil(*arguments: str) -> Sequence[str]:
    """Return the command line of `hil`."""
    return [sys.executable, "-m", "harness.cli", *arguments]


def call(argv: Sequence[str]) -> None:
    """Run a program; what it prints is thrown away. If this process is interrupted, so is the
    program: Ctrl-C goes to both. It is then waited for, so that it can clean up. Raises LabError,
    with what it said of errors, if it does not end with status 0."""
    with tempfile.TemporaryFile() as errors:
        null = subprocess.DEVNULL
        with subprocess.Popen(argv, stdin=null, stdout=null, stderr=errors) as process:
            try:
                process.wait()
            except BaseException:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_END_SECONDS)
                process.kill()
                raise
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` ended with status {process.returncode}: {said}")
