"""Run a sample of the suites on every combination of kernels and QEMUs, and go on where an earlier
call stopped."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness.artifacts import leashed
from harness.checkout import IN_CHECKOUT, ROOT, SUITES
from harness.errors import HarnessError
from harness.kernel_image import KernelImage, digest
from harness.lab.software import Software
from harness.progress import Progress
from harness.report import runs
from harness.report.run import load

#: What runs if nothing else is asked for: what depends most on the kernels, in minutes.
SAMPLE = (
    "suites/veventq/test_single_fault.py",
    "suites/veventq/test_hotplug.py",
    "suites/loss/test_overflow.py",
    "suites/placement/test_life.py",
    "suites/cmdqv/test_errors.py",
    "suites/hotplug/test_plug.py",
    "suites/hotplug/test_sleeping_ports.py",
    "suites/data",
)
#: How long the first combination is expected to take, in seconds: only progress depends on it.
_EXPECTED = 600.0
#: What pytest prints of a run that goes on: [ 12%].
_PERCENT = re.compile(rb"\[ *([0-9]+)%\]")
#: pytest's exit statuses for a call that is wrong on every combination, or chooses no test.
_WRONG_CALL, _NO_TEST = 4, 5

Say = Callable[[str], None]
Given = TypeVar("Given", KernelImage, "Qemu")


@dataclass(frozen=True)
class Qemu:
    """A QEMU: a file of this machine with its digest, or host:PATH."""

    path: str
    digest: str

    @classmethod
    def read(cls, path: str) -> Qemu:
        """Read a file. Raises OSError."""
        file = Software(qemu=path).qemu_file
        if file is None:
            return cls(path, path)
        return cls(str(file.absolute()), f"sha256 {digest(file.read_bytes())}")

    def __str__(self) -> str:
        return self.digest


@dataclass(frozen=True)
class Combination:
    """A host kernel, a guest kernel and a QEMU, None for the host's own, and the arguments of
    pytest."""

    host: KernelImage | None
    guest: KernelImage | None
    qemu: Qemu | None
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        given = (("host kernel", self.host), ("guest kernel", self.guest), ("QEMU", self.qemu))
        return ", ".join(f"{name} {one}" for name, one in given if one)

    @property
    def folder(self) -> str:
        """Return the name of the folder of its runs. The digest at its end stands for all that was
        asked: other files or other tests have other folders."""
        given = [one.digest if one else "" for one in (self.host, self.guest, self.qemu)]
        asked = digest(json.dumps([*given, *self.arguments]).encode())
        releases = [
            image.release or "unknown" if image else "own" for image in (self.host, self.guest)
        ]
        return re.sub(r"[^\w.+-]", "_", f"host-{releases[0]}+guest-{releases[1]}-{asked}")

    @property
    def options(self) -> list[str]:
        given = (
            ("--host-kernel", self.host),
            ("--guest-kernel", self.guest),
            ("--qemu", self.qemu),
        )
        return [f"{option}={one.path}" for option, one in given if one]


def chosen(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of pytest, with the sample if they name no tests of suites. Outside of a
    checkout there is no sample."""
    if not IN_CHECKOUT:
        return list(arguments)
    suites = (SUITES, Path("suites").resolve())
    names = [one.partition("::")[0] for one in arguments]
    # Values of options are no files, most likely.
    there = [Path(name).resolve() for name in names if name and Path(name).exists()]
    if any(path.is_relative_to(one) for path in there for one in suites):
        return list(arguments)
    return [*(str(ROOT / one) for one in SAMPLE), *arguments]


def combinations(
    host_kernels: Sequence[Path],
    guest_kernels: Sequence[Path],
    qemus: Sequence[str],
    arguments: Sequence[str],
) -> list[Combination]:
    """Return all combinations of these kernels and QEMUs. Where none of a kind is given, it is the
    host's own. Raises HarnessError for a file that is not what it should be."""
    for host in host_kernels:
        Software.named(host_kernel=host)
    for guest in guest_kernels:
        Software.named(guest_kernel=str(guest))
    for qemu in qemus:
        Software.named(qemu)
    return [
        Combination(host, guest, qemu, tuple(arguments))
        for host in _each(map(KernelImage.read, host_kernels))
        for guest in _each(map(KernelImage.read, guest_kernels))
        for qemu in _each(map(Qemu.read, qemus))
    ]


def _each(files: Iterable[Given]) -> Sequence[Given | None]:
    """Return each file once, though it be given by two paths; None, the host's own, if there is
    none."""
    return list({one.digest: one for one in files}.values()) or [None]


def finished(folder: Path) -> Path | None:
    """Return the latest run in a folder that has ended and was not interrupted."""
    for run in reversed(runs.ended(folder)):
        body = load(run)
        if body["tests"] and not body.get("broken"):
            return run
    return None


def cross(
    asked: Sequence[Combination], out: Path, progress: Progress, say: Say, *, fresh: bool
) -> Iterator[tuple[Combination, Path | None]]:
    """Run each combination that has no finished run in `out`, or all if `fresh`; yield each with
    its run's folder, None for one that left no results. Raises HarnessError for a call that pytest
    refuses, which it does for all combinations."""
    expected = _EXPECTED
    for number, one in enumerate(asked, start=1):
        folder = out / one.folder
        called = f"{number} of {len(asked)}: {one}"
        known = None if fresh else finished(folder)
        if known:
            say(f"{called}: has run")
        else:
            say(called)
            started, before = time.monotonic(), runs.ended(folder)
            status = _run(one, folder, progress, called, expected)
            expected = time.monotonic() - started
            known = next((run for run in runs.ended(folder) if run not in before), None)
            if known is None:
                say(f"  left no results: status {status}; {folder / _LOG} has what pytest said")
        if known:
            said = [run.verdict for run in runs.runs(folder) if run.folder == known]
            say(f"  {said[0]}\n  {known}")
        yield one, known


_LOG = "pytest.log"


def _run(one: Combination, folder: Path, progress: Progress, called: str, expected: float) -> int:
    """Run pytest for a combination, with what it prints in a file, and return its exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / _LOG
    log.unlink(missing_ok=True)
    arguments = [*one.arguments, *one.options, f"--out={folder}", "--report"]
    with progress.step(called, expected) as advance:

        def look() -> None:
            found = _PERCENT.findall(log.read_bytes())
            if found:
                advance(int(found[-1]) / 100)

        status = leashed.run([sys.executable, "-m", "pytest", *arguments], log, look=look)
    if status in (_WRONG_CALL, _NO_TEST):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        told = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
        raise HarnessError(
            f"pytest cannot run these tests: {(told or lines or ['it said nothing'])[-1]}",
            fix=f"call pytest with these arguments until it runs; {log} has all that it says",
        )
    return status
