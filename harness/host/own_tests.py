"""Run the kernel's own tests (tools/testing/selftests in Linux) on a host, which needs the
capability `selftests`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import ProductError
from harness.host.host import Host


@dataclass(frozen=True)
class Results:
    """What a program of tests printed, in the Test Anything Protocol."""

    planned: int
    passed: tuple[str, ...]
    failed: tuple[str, ...]

    @classmethod
    def of(cls, said: str) -> Results:
        """Read a program's output. Raises ProductError if it has no plan."""
        plan = re.search(r"^1\.\.(\d+)", said, re.M)
        if not plan:
            raise ProductError(f"the tests did not begin:\n{said}")
        lines = re.findall(r"^(not )?ok \d+ (\S+)", said, re.M)
        return cls(
            int(plan[1]),
            tuple(name for failed, name in lines if not failed),
            tuple(name for failed, name in lines if failed),
        )


def check(said: str) -> None:
    """Check that all planned tests ran and passed, or were skipped by themselves. Raises
    ProductError."""
    found = Results.of(said)
    if found.failed or len(found.passed) != found.planned or not found.planned:
        raise ProductError(
            f"{len(found.passed)} of {found.planned} tests of the kernel's own passed:\n{said}"
        )


def release(host: Host) -> str:
    """Return the version of Linux that the tests are of; nothing if that is not known."""
    path = f"{host.files.selftests}/release"
    return host.connection.run(["cat", path], check=False).text.strip()


def run(host: Host, program: str, options: Sequence[str], seconds: float) -> None:
    """Run one of the programs, and check what it says. Raises ProductError if a test fails, or if
    all has not ended after `seconds`."""
    log, name = f"{host.session.folder}/{program}.log", f"selftest-{program}"
    argv = [f"{host.files.selftests}/{program}", *options]
    host.session.spawn(name, argv, log=log)
    try:
        status = host.session.wait(name, seconds)
    finally:
        host.session.kill(name)
    said = host.connection.read_file(log).decode(errors="replace")
    if status is None:
        raise ProductError(f"{program} has not ended after {seconds:.0f} s:\n{said}")
    check(said)
    if status:
        raise ProductError(f"{program} ended with status {status}:\n{said}")
