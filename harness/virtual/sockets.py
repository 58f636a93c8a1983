"""Unix sockets with long paths, listening sockets for child processes, and free ports."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import LabError


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Yield a descriptor of a folder. Raises OSError."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def within(folder: int, name: str) -> str:
    """Return a path of the file `name` in a folder of which the process that uses the path has the
    descriptor `folder`. The path is short: that of a Unix socket may have 107 bytes at most
    (unix(7)), and a cache may be in a deep folder."""
    return f"/proc/self/fd/{folder}/{name}"


def connect(sock: socket.socket, path: Path) -> None:
    """Connect to the Unix socket `path`, however long that is. Raises OSError."""
    with opened(path.parent) as folder:
        sock.connect(within(folder, path.name))


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Yield a listening Unix socket for a process to inherit. The socket exists before the process
    serves it, so that an early client waits instead of failing."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        with opened(path.parent) as folder:
            sock.bind(within(folder, path.name))
        sock.listen(8)
        yield sock


def free_port(wanted: int | None = None) -> int:
    """Return a free TCP port outside of the range that the kernel gives to outgoing connections:
    QEMU releases the port for a moment at each restore and must get it back. It is the `wanted` one
    if possible. Raises LabError if there is none."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    usable = [port for port in range(10_000, 1 << 16) if not first <= port <= last]
    preferred = [wanted] if wanted in usable else []
    for port in (*preferred, *random.sample(usable, len(usable))):
        with socket.socket() as sock:
            # As QEMU does: a port is free of which only a connection's end is kept (TIME_WAIT).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                return port
    raise LabError(
        f"no free port outside of {first} to {last}",
        fix="narrow the range in /proc/sys/net/ipv4/ip_local_port_range",
    )
