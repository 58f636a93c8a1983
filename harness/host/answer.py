"""What a host tells of itself when it is asked over SSH, whoever has it. A run that has the host
does not notice."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from harness.errors import LabError
from harness.host.connection import Connection
from harness.host.holder import Holder
from harness.host.session import ROOT
from harness.host.target import Target

#: How long a host that answers may take, in seconds.
_SECONDS = 15.0
_PARTS = "----"


@dataclass(frozen=True)
class FreeSpace:
    """A file system of a host: where it is mounted, and how many bytes of it are free."""

    mounted: str
    free: int
    size: int


@dataclass(frozen=True)
class HostAnswer:
    """What a host tells: its kernel's release, its QEMU's version, empty if there is none, for how
    many seconds it has been up, its disks, whether a session has it, and whose that is, if it is
    told."""

    kernel: str
    qemu: str
    up: float
    disks: tuple[FreeSpace, ...]
    held: bool
    holder: Holder | None


def ask(target: Target, qemu: str) -> HostAnswer:
    """Ask a host, which has its QEMU at the path `qemu`. Raises LabError when it cannot be
    reached."""
    commands = (
        "uname -r",
        f"{shlex.quote(qemu)} --version 2>/dev/null",
        "cat /proc/uptime",
        # The root file system, and where sessions have their files.
        "df -Pk / /run",
        # Whether a session has the lock. An agent that starts in the moment of the question is told
        # that the host is in use, and its run asks again.
        f"if [ -e {ROOT}/lock ]; then flock -n -s {ROOT}/lock true; "
        f'[ $? = 1 ] && echo "held $(cat {ROOT}/lock)"; fi',
    )
    with Connection.to(target) as connection:
        told = connection.run(f"; echo {_PARTS}; ".join(commands), timeout=_SECONDS, check=False)
    parts = [part.strip() for part in told.text.split(f"{_PARTS}\n")]
    if len(parts) != len(commands):
        raise LabError(
            f"host {target.known_as} does not answer as a Linux with coreutils does: "
            f"{told.stderr.decode(errors='replace').strip()}"
        )
    kernel, version, up, disks, lock = parts
    found = re.search(r"version (\S+)", version)
    held, _, session = lock.partition(" ")
    return HostAnswer(
        kernel,
        found[1] if found else "",
        float(up.split()[0]) if up else 0.0,
        tuple(_disks(disks)),
        bool(held),
        Holder.parse(session.partition(" ")[2]),
    )


def _disks(told: str) -> Iterator[FreeSpace]:
    """Yield the file systems of the output of `df -Pk`, each once."""
    seen = set()
    for line in told.splitlines()[1:]:
        found = re.fullmatch(r".+? +([0-9]+) +[0-9]+ +([0-9]+) +\S+ +(/.*)", line)
        if found and found[3] not in seen:
            seen.add(found[3])
            yield FreeSpace(found[3], int(found[2]) << 10, int(found[1]) << 10)
