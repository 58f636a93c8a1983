"""Tell how a guest's QEMU died: by which signal or status, with which last words, and where."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable

from harness import kernel_log
from harness.errors import BreakdownError, HarnessError, HilError, LabError
from harness.guest.console import last_lines
from harness.guest.description import Identity, Paths
from harness.host.session import Session

#: How many of the last lines of QEMU's messages and of its trace are shown.
MESSAGES = 30
TRACE_LINES = 10
#: How much of the end of each is read for them, in bytes.
_MOST_BYTES = 20_000
#: How many frames of a dead QEMU's stack are shown.
FRAMES = 30
#: The longest that gdb may take to read a core, in seconds.
GDB_SECONDS = 120.0


class QemuDiedError(BreakdownError):
    """QEMU ended, and nobody had told it to."""


class OutOfMemoryError(LabError):
    """The host's kernel killed QEMU because the host's memory was used up."""


class BoundaryDiedError(HarnessError):
    """The boundary, which is ours, ended, and QEMU with it."""

    decides = True


def death(
    session: Session, guest: Identity, status: int
) -> QemuDiedError | OutOfMemoryError | BoundaryDiedError:
    """Return the error that tells of the death of a guest's QEMU. `status` is that of the process
    that the agent started: QEMU, or the boundary that ran it."""
    name, qemu, boundary = guest.name, guest.files.qemu, guest.spec.boundary is not None
    number = ended_by(status, boundary=boundary)
    how = f"status {status}" if number is None else _named(number)
    paths = Paths(f"{session.folder}/{name}")
    said = _last(lambda: _read(session, paths.qemu_log), MESSAGES)
    if boundary and status < 0:
        return BoundaryDiedError(
            f"the boundary of guest {name} ended with {how}, and QEMU with it; its last "
            f"messages:\n{said}"
        )
    # The log goes back to the boot: it may tell of another QEMU, which had the same number.
    killed = number == signal.SIGKILL and _out_of_memory(session, name, qemu, boundary=boundary)
    if killed:
        host = session.connection.target.known_as
        return OutOfMemoryError(
            f"QEMU of guest {name} was killed, because the memory of host {host} is used up: "
            f"{killed}",
            fix="give the host more memory, or end what else uses it",
        )
    parts = [f"QEMU of guest {name} ended with {how}; its last messages:", said]
    parts += _backtrace(session, qemu)
    parts += ["the last lines of its trace:"]
    parts += [_last(lambda: _read(session, paths.trace_log), TRACE_LINES)]
    return QemuDiedError("\n".join(parts))


def ended_by(status: int, *, boundary: bool) -> int | None:
    """Return the signal that ended QEMU, or None if it exited. The boundary ends as a shell does
    when its QEMU was ended by a signal: with 128 and the signal's number."""
    if status < 0:
        return -status
    return status - 128 if boundary and status > 128 else None


def _named(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _out_of_memory(session: Session, name: str, qemu: str, *, boundary: bool) -> str:
    """Return what the kernel said if it killed the guest's QEMU for its memory; else nothing.
    Behind a boundary QEMU's pid is unknown by now: any QEMU counts."""
    program = qemu.rpartition("/")[2][:15]
    try:
        pid, log = str(session.pid(name)), session.connection.run("dmesg").text
    except HilError:
        return ""  # the death is told without it
    for line in log.splitlines():
        found = re.search(kernel_log.OUT_OF_MEMORY, line)
        if found and (found[1] == pid or (boundary and found[2] == program)):
            return line.strip()
    return ""


def _backtrace(session: Session, qemu: str) -> list[str]:
    """Return the stack of the thread that QEMU died in, if it left a core and the host has gdb."""
    connection, core = session.connection, f"{session.folder}/core"
    try:
        found = connection.run(f"ls -t {core} {core}.* 2>&- | head -n1", check=False).text.strip()
        if not found:
            return []
        argv = ["gdb", "-nx", "-batch", "-ex", f"backtrace {FRAMES}", qemu, found]
        ended = connection.run(f"{shlex.join(argv)} 2>&1", timeout=GDB_SECONDS, check=False)
        connection.run(["rm", "-f", found])
    except HilError as problem:
        return [f"no backtrace: {problem.message}"]
    if ended.status != 0:
        return [f"no backtrace: gdb ended with status {ended.status}"]
    return ["where it was:", last_lines(ended.text, FRAMES)]


def _read(session: Session, path: str) -> str:
    return session.read_file(path, offset=-_MOST_BYTES).decode(errors="replace")


def _last(read: Callable[[], str], count: int) -> str:
    try:
        return last_lines(read(), count) or "  | nothing"
    except HilError as problem:
        return f"  not available: {problem.message}"
