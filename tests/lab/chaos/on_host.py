"""Print all that a session could leave behind on a host, one thing a line.

It is sent to the host's Python: standard library only, Python 3.9.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def processes() -> Iterator[str]:
    """Yield the command lines of all processes but sshd's, this one and those that started it.
    Threads of the kernel have no command line."""
    ours = set()
    pid = os.getpid()
    while pid > 1:
        ours.add(pid)
        pid = int(read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
    for process in Path("/proc").glob("[0-9]*"):
        line = read(f"{process}/cmdline").replace("\0", " ").strip()
        if (
            line
            and int(process.name) not in ours
            and not line.startswith(("sshd", "/usr/sbin/sshd"))
        ):
            yield line


def files(*folders: str) -> Iterator[str]:
    for folder in folders:
        for where, inner, names in os.walk(folder):
            for name in inner + names:
                # What probing found stays until the host boots.
                if (where, name) != ("/run/hil", "probed"):
                    yield f"{where}/{name}"


def lock(path: str) -> Iterator[str]:
    """Yield the path of a lock if somebody holds it."""
    if Path(path).exists():
        with Path(path).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield path


def drivers() -> Iterator[str]:
    for device in Path("/sys/bus/pci/devices").iterdir():
        driver = (device / "driver").resolve().name
        override = read(f"{device}/driver_override").strip()
        yield f"{device.name} has {driver}, driver_override {override}"


def sockets() -> Iterator[str]:
    for line in read("/proc/net/unix").splitlines()[1:]:
        path = line.split()[7:]
        yield from path


def mounts() -> Iterator[str]:
    """Yield what is mounted where. A tmpfs that had another size for a while has other options."""
    for line in read("/proc/mounts").splitlines():
        yield " ".join(line.split()[:3])


def lines(*paths: str) -> Iterator[str]:
    for path in paths:
        yield from (f"{path}: {line}" for line in read(path).splitlines())


KINDS = {
    "process": processes(),
    "file": files("/run/hil", "/tmp", "/var/tmp", "/root", "/dev/shm", "/dev/vfio"),
    "lock": lock("/run/hil/lock"),
    "device": drivers(),
    "socket": sockets(),
    "mount": mounts(),
    "huge pages": lines(*map(str, Path("/sys/kernel/mm/hugepages").glob("*/nr_hugepages"))),
    "kprobe": lines("/sys/kernel/tracing/kprobe_events"),
}

for kind, found in KINDS.items():
    for one in sorted(found):
        print(f"{kind} {one!r}")
