"""Find out what each test of the suites needs of a host. pytest collects them, so that marks,
parameters and classes count as in a run; no test runs, and no host is reached."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from harness.checkout import ROOT
from harness.errors import HarnessError
from harness.guest.choice import Needs


@dataclass(frozen=True)
class Requirement:
    """What one test needs of its host: capabilities, and devices for guests that run together.
    `test` is pytest's id, and `covers` are the behaviours that the test carries."""

    test: str
    covers: tuple[str, ...]
    capabilities: tuple[str, ...]
    guests: tuple[Needs, ...]


#: The form in which pytest writes them, with --requirements.
REQUIREMENTS = TypeAdapter(list[Requirement])


def requirements(suites: Path, lab: Path, host: str) -> list[Requirement]:
    """Return what the tests under a folder need when they run on a host of a lab. Raises
    HarnessError with what pytest said if it cannot collect them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.json"
        options = [f"--lab={lab.absolute()}", f"--host={host}", f"--requirements={file}"]
        collected = subprocess.run(
            [sys.executable, "-m", "pytest", suites, "--collect-only", "-q", *options],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if collected.returncode != 0:
            raise HarnessError(
                f"pytest cannot collect {suites}:\n{collected.stdout}{collected.stderr}",
                fix="correct the tests until `pytest --collect-only` succeeds with them",
            )
        return REQUIREMENTS.validate_json(file.read_bytes())
