"""Tests interrupt child processes that they start here."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def interruptible(
    argv: Sequence[str], *, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a child that Ctrl-C interrupts, yield it, and kill it at the end.

    The child's SIGINT is reset, because it would inherit an ignored one: a shell starts background
    jobs, such as this test run may be, with SIGINT ignored.
    """
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
