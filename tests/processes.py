"""Tests interrupt child processes that they start here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def interruptible(
    argv: Sequence[str], *, cwd: Path | None = None, said: Path = Path(os.devnull)
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a child that Ctrl-C interrupts, yield it, and kill it at the end. What it prints goes
    to the file `said`.

    The child's SIGINT is reset, because it would inherit an ignored one: a shell starts background
    jobs, such as this test run may be, with SIGINT ignored.
    """
    with said.open("wb") as printed:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[bytes], said: Path, *, seconds: float) -> int:
    """Return the exit status of a child that runs Python. If it does not end in time, fail with
    what it printed, and with what each of its threads does."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler prints the threads
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        printed = said.read_text(errors="replace")
        raise AssertionError(f"it runs on for {seconds:.0f} s; it printed:\n{printed}") from None
