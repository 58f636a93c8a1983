"""Collect evidence for the reader of a failed test: what every witness saw.

Each witness is asked on its own, so that one that does not answer does not hide the others.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from harness.boundary.client import entries
from harness.guest.guest import Guest
from harness.host.connection import Connection, LinkLostError
from harness.host.host import Host, Silicon
from harness.host.link import UnreachableError
from harness.report.notes import reason

#: The most bytes of an attachment, so that a browser shows it. The end of a log is kept, and only
#: that is fetched: a log may be larger than what a slow link carries in the time of a command.
LONGEST = 512 * 1024
#: How many of the latest records of an event queue, and commands of a CMDQV, are shown.
QUEUE_RECORDS = 2000
COMMANDS = 500


@dataclass(frozen=True)
class Evidence:
    """One attachment, which is text. `missing` is why its witness said nothing, empty if it did, or
    if it was not asked."""

    name: str
    text: str
    missing: str = ""


Witness = Callable[[], str]


def collect(host: Host, guests: list[Guest]) -> Iterator[Evidence]:
    """Yield the evidence of every witness of a host and its guests, as it is now. Never raise for
    one that does not answer."""
    return ask(_witnesses(host, guests))


def ask(witnesses: Iterable[tuple[str, Witness]]) -> Iterator[Evidence]:
    """Ask each witness in turn and yield its evidence. Once the host does not answer, ask no other
    witness: each would be waited for."""
    lost = ""
    for name, witness in witnesses:
        if lost:
            yield Evidence(name, f"not asked: {lost}")
            continue
        try:
            text = _end(witness())
        except (KeyboardInterrupt, SystemExit):
            raise
        # pytest-timeout ends what takes too long by an exception that is no Exception.
        except BaseException as problem:
            why = reason(problem)
            if isinstance(problem, (LinkLostError, UnreachableError)):
                lost = why
            yield Evidence(name, f"not available: {why}", missing=why)
        else:
            yield Evidence(name, text)


def _end(text: str) -> str:
    """Return the end of a text that is too long, and say so."""
    if len(text) <= LONGEST:
        return text
    return f"{_left_out(len(text) - LONGEST, 'characters')}{text[-LONGEST:]}"


def _left_out(count: int, what: str) -> str:
    return f"[{count} {what} before this are left out]\n"


def log(connection: Connection, path: str) -> str:
    """Return the end of a log on a host, and say how many bytes are left out before it. Raises
    LabError."""
    # The log grows meanwhile: its size is that of the file as it was opened.
    shown = f"stat -L -c %s /proc/self/fd/0; tail -c {LONGEST}"
    said = connection.run(f"{{ {shown}; }} <{shlex.quote(path)}").stdout
    size, _, end = said.partition(b"\n")
    left_out = int(size) - LONGEST
    text = end.decode(errors="replace")
    return _left_out(left_out, "bytes") + text if left_out > 0 else text


def kernel_log(connection: Connection) -> str:
    """Return the end of a host's kernel log. Raises LabError."""
    return connection.run(f"dmesg | tail -c {LONGEST}").text


def _witnesses(host: Host, guests: list[Guest]) -> Iterator[tuple[str, Witness]]:
    # It takes no connection: a host that is gone has said there why.
    if host.console:
        yield "host console", host.console.stamped
    yield "host kernel log", partial(kernel_log, host.connection)
    if host.description.silicon:
        yield "CMDQV: last commands", partial(commands, host.description.silicon)
    for guest in guests:
        name, paths, connection = guest.name, guest.paths, guest.session.connection
        yield f"{name}: console", partial(_console, connection, paths.console_log)
        yield f"{name}: UART", partial(_console, connection, paths.uart_log)
        yield f"{name}: QEMU command line", partial(_command_line, guest)
        yield f"{name}: process", partial(_process, guest)
        yield f"{name}: QEMU messages", partial(log, connection, paths.qemu_log)
        yield f"{name}: QEMU trace", partial(log, connection, paths.trace_log)
        if guest.spec.boundary:
            yield f"{name}: boundary", partial(_boundary, connection, paths.boundary_log)
        for smmu in range(len(guest.spec.smmus)):
            yield f"{name}: event queue of smmu{smmu}", partial(_queue, guest, smmu)
        yield f"{name}: kernel log", partial(_kernel_log, guest)


def _kernel_log(guest: Guest) -> str:
    guest.run("true", timeout=10)  # wait less long for a guest that does not answer
    return guest.run_long(f"dmesg | tail -c {LONGEST}").text


def commands(silicon: Silicon) -> str:
    """Return the last commands of guest-owned queues that the CMDQV carried out, a line each, the
    latest last."""
    first = max(0, silicon.count() - COMMANDS)
    return "\n".join(
        f"VINTF {vintf} LVCMDQ {lvcmdq}: {low:#018x} {high:#018x}"
        for vintf, lvcmdq, low, high in silicon.commands(first)
    )


def _process(guest: Guest) -> str:
    status = guest.session.processes().get(guest.name)
    what = "the boundary, which runs QEMU," if guest.spec.boundary else "QEMU"
    return f"{what} {'runs' if status is None else f'ended with status {status}'}"


def _boundary(connection: Connection, path: str) -> str:
    text = log(connection, path)
    lines = text.splitlines()
    # Without its beginning the log has a line that says so, and a part of another.
    first = [] if text.startswith("{") else lines[:1]
    return "\n".join([*first, *map(str, entries(lines[2:] if first else lines))])


def _command_line(guest: Guest) -> str:
    return shlex.join(guest.command_line())


def _console(connection: Connection, path: str) -> str:
    return log(connection, path).replace("\r", "")


def _queue(guest: Guest, smmu: int) -> str:
    """Return the event queue's registers and its latest records, a line each, the latest last."""
    queue = guest.event_queue(smmu)
    geometry = queue.geometry()
    prod, cons = queue.prod, queue.cons
    head = f"{geometry.entries} entries at {geometry.address:#x}, PROD {prod:#x}, CONS {cons:#x}"
    records = queue.latest(QUEUE_RECORDS)
    return "\n".join([head, *(str(record) for record in records)])
