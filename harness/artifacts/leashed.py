"""Programs that end when this process does, also when it is killed (leash.py holds them)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from harness.artifacts import leash
from harness.errors import LabError

#: How often a running program's output is looked at, in seconds.
_LOOK = 0.5
#: How long an interrupted program may take to clean up, in seconds: a run gives its hosts back.
PATIENCE = 60.0


def start(
    argv: Sequence[str | Path],
    output: IO[bytes] | int,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program, with all that it prints in `output`, and return its leash, which leads a
    session of its own: a Ctrl-C at the terminal reaches neither."""
    owner = os.pidfd_open(os.getpid())
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", leash.__file__, str(owner), *argv],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[owner],
            start_new_session=True,
        )
    finally:
        os.close(owner)


def run(
    argv: Sequence[str | Path],
    log: Path,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    look: Callable[[], None] | None = None,
) -> int:
    """Run a program to its end in a folder, append what it prints to `log`, and return its exit
    status. `look` is called while it runs. If the caller is interrupted, the program is told to
    end, and is killed if it does not. Raises LabError if there is no such program."""
    if shutil.which(argv[0]) is None:
        raise LabError(f"{argv[0]} is missing", fix=f"install the package that has {argv[0]}")
    log.parent.mkdir(parents=True, exist_ok=True)
    with _running(argv, log, folder, environment) as process:
        while True:
            try:
                return process.wait(_LOOK)
            except subprocess.TimeoutExpired:
                if look:
                    look()


@contextlib.contextmanager
def _running(
    argv: Sequence[str | Path],
    log: Path,
    folder: Path | None,
    environment: Mapping[str, str] | None,
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = start(argv, output, folder=folder, environment=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            end(process)


def end(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> None:
    """End a program by its leash, with all that it has started: it may clean up, once, for so many
    seconds. A second Ctrl-C ends it at once."""
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            # The program alone: what it has started is its own to end. SIGTERM is to a run of
            # pytest as Ctrl-C, which it may have been started to ignore.
            for tool in psutil.Process(process.pid).children():
                tool.terminate()
        process.wait(patience)
    except subprocess.TimeoutExpired:
        pass
    finally:
        leash.end_session(process.pid)
        process.wait()
