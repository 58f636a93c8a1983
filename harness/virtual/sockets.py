"""Listening sockets and free ports for child processes."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import LabError


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Yield a listening Unix socket for a process to inherit. The socket exists before the process
    serves it, so that an early client waits instead of failing."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(8)
        yield sock


def free_port() -> int:
    """Return a free TCP port outside of the range that the kernel gives to outgoing connections:
    QEMU releases the port for a moment at each restore and must get it back. Raises LabError if
    there is none."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    usable = [port for port in range(10_000, 1 << 16) if not first <= port <= last]
    for port in random.sample(usable, len(usable)):
        with socket.socket() as sock:
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                return port
    raise LabError(
        f"no free port outside of {first} to {last}",
        fix="narrow the range in /proc/sys/net/ipv4/ip_local_port_range",
    )
