"""What a call measured, as a file, and what earlier calls measured: out/bench/TIME-COMMIT.json."""

from __future__ import annotations

import enum
import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from benchmarks.runner.figure import Better, Figure
from harness.artifacts import stack
from harness.artifacts.store import Store
from harness.checkout import OUT, ROOT
from harness.errors import HarnessError, HilError
from harness.report import executor

#: Where the records of this checkout are.
FOLDER = OUT / "bench"
#: The packages whose versions change what is measured.
_PACKAGES = ("paramiko", "pexpect", "pytest", "rich", "typer")
_FORMAT = 1


class Outcome(enum.StrEnum):
    """How a call ended."""

    #: All was measured, and nothing has regressed.
    PASSED = "passed"
    FAILED = "failed"
    #: Somebody takes it as it is (`--accept`).
    ACCEPTED = "accepted"


@dataclass(frozen=True)
class Machine:
    """The machine that measured: the model of its CPU, how many it has, and its load average at the
    start (of the last minute)."""

    cpu: str
    cores: int
    load: float = field(default=0.0, compare=False)

    @classmethod
    def here(cls) -> Machine:
        """Return this machine, as it is now."""
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        said = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
        # AArch64 has numbers in place of a name: MIDR_EL1's fields.
        arm = [said[key].strip() for key in ("CPU implementer", "CPU part") if key in said]
        name = said.get("model name", "").strip() or " ".join(arm)
        return cls(name or platform.machine(), os.cpu_count() or 1, round(os.getloadavg()[0], 2))

    @property
    def busy(self) -> bool:
        """Return whether so much runs on it that figures may be worse for that."""
        return self.load > self.cores / 2

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores"


@dataclass(frozen=True)
class Measured:
    """The values of a figure. `seemed` are those by which it seemed to have regressed, so that it
    was measured again; `base` are those of another checkout, measured in turn with `samples`."""

    unit: str
    samples: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]
    better: Better = Better.SMALLER
    limit: float | None = None
    seemed: tuple[FiniteFloat, ...] = ()
    base: tuple[FiniteFloat, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


@dataclass(frozen=True)
class Record:
    """What a call measured. `problems` say, by the benchmark's name, what was not measured, and
    why."""

    started: str
    commit: str
    machine: Machine
    versions: dict[str, str]
    figures: dict[str, Measured]
    problems: dict[str, str]
    outcome: Outcome
    format: Annotated[int, Field(ge=_FORMAT, le=_FORMAT)] = _FORMAT

    @property
    def good(self) -> bool:
        return self.outcome is not Outcome.FAILED

    def write(self, folder: Path) -> Path:
        """Write it as a file of its own, whole or not at all; return the path. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        body = asdict(self)
        for name, one in self.figures.items():
            body["figures"][name]["median"] = one.median
        # What sorts by name sorts by time.
        stamp = self.started.replace("-", "").replace(":", "").replace("T", "-")
        path = folder / f"{stamp}-{self.commit.replace('/', '-')}.json"
        new = path.with_suffix(".new")
        try:
            new.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        return path


_RECORD = TypeAdapter(Record)


class DamagedError(HarnessError):
    """A file is no record; the message says why."""


def load(path: Path) -> Record:
    """Return the record in a file. Raises DamagedError."""
    try:
        return _RECORD.validate_json(path.read_bytes())
    except (OSError, ValueError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else str(problem)
        if isinstance(problem, ValidationError):
            first = problem.errors()[0]
            why = ": ".join([*(".".join(map(str, [part])) for part in first["loc"]), first["msg"]])
        raise DamagedError(f"{path} is no record of figures: {why}") from None


def now() -> str:
    """Return the time for Record.started."""
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def commit() -> str:
    """Return the revision of this checkout."""
    return executor.revision(ROOT)


def versions() -> dict[str, str]:
    """Return the versions of what is measured with, and of the stack of the virtual lab, as far as
    that is known here."""
    found = {"python": platform.python_version(), "linux": platform.release()}
    found |= {name: metadata.version(name) for name in _PACKAGES}
    try:
        found["stack"] = str(stack.recorded(Store().root) or "not known yet")
    except HilError as problem:
        found["stack"] = problem.message
    return found


@dataclass(frozen=True)
class Earlier:
    """An earlier value of a figure: its median, and the file that has it."""

    median: float
    unit: str
    file: Path


@dataclass(frozen=True)
class Baseline:
    """What figures are compared with, by their names, and what is to be told of records that are
    not: those that are damaged, or of another machine."""

    figures: Mapping[str, Earlier]
    notes: tuple[str, ...] = ()

    def of(self, figure: Figure) -> Earlier | None:
        """Return the earlier value of a figure; None if there is none, or one in another unit."""
        earlier = self.figures.get(figure.name)
        return earlier if earlier and earlier.unit == figure.unit else None


def baseline(files: Sequence[Path], machine: Machine, *, any_outcome: bool = False) -> Baseline:
    """Return what figures are compared with, of records in the order of their time. For each figure
    that is the last accepted record that has it, else the last one that passed.

    An accepted record stays the measure until another one is accepted: else figures could get worse
    by a little each time, and nobody would be told. With `any_outcome` a failed record will do.
    """
    found: dict[str, Earlier] = {}
    notes, records, foreign = [], [], Counter[str]()
    for file in files:
        try:
            record = load(file)
        except DamagedError as problem:
            notes.append(f"not compared: {problem.message}")
            continue
        if not (record.good or any_outcome):
            continue
        if record.machine != machine:
            foreign[str(record.machine)] += 1
            continue
        records.append((record.outcome is Outcome.ACCEPTED, file, record))
    for other, count in foreign.items():
        notes.append(f"not compared: {count} of another machine ({other})")
    # Sorting keeps the order of time among those alike.
    for _, file, record in sorted(records, key=lambda one: one[0]):
        for name, one in record.figures.items():
            found[name] = Earlier(one.median, one.unit, file)
    return Baseline(found, tuple(notes))


def kept(folder: Path = FOLDER) -> Iterator[Path]:
    """Yield the records of a folder, the oldest first."""
    yield from sorted(folder.glob("*.json"))
