"""Child processes of tests that are to be interrupted."""

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
    """A child that takes Ctrl-C as one at a terminal does, even if we ignore it ourselves, as
    whatever a shell starts in the background does. It never outlives the context."""
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
