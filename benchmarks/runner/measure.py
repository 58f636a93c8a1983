"""Run benchmarks, each round in a process of its own, with the harness of this checkout or of
another one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.runner.figure import Benchmark
from harness.checkout import ROOT
from harness.errors import LabError
from harness.progress import Progress

_MODULE = "benchmarks.runner.sample"
#: How a round is ended: each signal, and how long its effect is awaited, in seconds. A round that
#: is interrupted takes its host down.
_ENDING = ((signal.SIGINT, 60.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
#: How much is told of what a round prints besides its values.
_LAST_BYTES = 4000

#: The values of each figure, by its name.
Values = dict[str, list[float]]


@dataclass(frozen=True)
class Meter:
    """Runs rounds of benchmarks. `folder` has this checkout's `benchmarks`, and nothing else: so
    what is measured may be the harness of any checkout, and how it is measured is the same."""

    folder: Path
    progress: Progress
    share: float = 1.0

    @classmethod
    @contextlib.contextmanager
    def ready(cls, progress: Progress, share: float = 1.0) -> Iterator[Meter]:
        """Yield a meter."""
        with tempfile.TemporaryDirectory(prefix="hil-bench-") as folder:
            (Path(folder) / "benchmarks").symlink_to(ROOT / "benchmarks")
            yield cls(Path(folder), progress, share)

    def rounds(
        self, name: str, benchmark: Benchmark, called: str, into: Mapping[Path, Values]
    ) -> None:
        """Run all rounds of a benchmark, of each checkout in turn, and add the values to those that
        each checkout has. Raises LabError when a round fails; values that came before stay."""
        rounds = benchmark.rounds if self.share == 1 else 1
        for number in range(1, rounds + 1):
            for checkout, values in into.items():
                whose = "" if checkout == ROOT else f" of {checkout}"
                title = f"{called}, round {number} of {rounds}{whose}"
                with self.progress.step(title, benchmark.seconds * self.share):
                    for figure, value in self._round(name, checkout):
                        values.setdefault(figure, []).append(value)

    def _round(self, name: str, checkout: Path) -> Iterator[tuple[str, float]]:
        """Run one round and yield the values as they come."""
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, name, str(self.share)],
                cwd=checkout,
                env=self._environment(checkout),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # Ctrl-C comes to this process only, which passes it on once.
                process_group=0,
            )
            assert process.stdout
            with process.stdout as lines:
                try:
                    for line in lines:
                        told = json.loads(line)
                        if "figure" in told:
                            yield told["figure"], float(told["value"])
                            continue
                        process.wait()
                        if "done" not in told:
                            raise LabError(told["problem"])
                        if said := _said(errors):
                            self.progress.note(said)
                        return
                    status = process.wait()
                    raise LabError(f"the benchmark ended with status {status}: {_said(errors)}")
                finally:
                    _end(process)

    def _environment(self, checkout: Path) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder), str(checkout)])
        # With SAFEPATH the folder that a program is called from is not searched for modules.
        return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _said(errors: IO[bytes]) -> str:
    """Return the end of what a round printed on standard error."""
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - _LAST_BYTES))
    return errors.read().decode(errors="replace").strip()


def _end(process: subprocess.Popen[str]) -> None:
    """End a round, and whatever it has started, as Ctrl-C does; at last by force."""
    for number, seconds in _ENDING:
        if process.poll() is not None:
            break
        os.killpg(process.pid, number)
        # A second Ctrl-C shortens the wait.
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
