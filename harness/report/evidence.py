"""Collect evidence for the reader of a failed test: what every witness saw.

Each witness is asked on its own, so that one that does not answer does not hide the others.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from harness.boundary.client import Boundary
from harness.errors import HilError
from harness.guest.guest import Guest
from harness.host.connection import LinkLostError
from harness.host.host import Host, Silicon
from harness.host.link import UnreachableError

#: The most characters of an attachment, so that a browser shows it; the end of a log is kept.
LONGEST = 512 * 1024
#: How many of the latest records of an event queue, and commands of a CMDQV, are shown.
QUEUE_RECORDS = 2000
COMMANDS = 500


@dataclass(frozen=True)
class Evidence:
    """One attachment, which is text."""

    name: str
    text: str


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
            text = witness()
        except (LinkLostError, UnreachableError) as problem:
            lost = problem.message
            text = f"not available: {problem}"
        except (HilError, OSError, ValueError) as problem:
            text = f"not available: {problem}"
        if len(text) > LONGEST:
            left_out = len(text) - LONGEST
            text = f"[{left_out} characters before this are left out]\n{text[-LONGEST:]}"
        yield Evidence(name, text)


def _witnesses(host: Host, guests: list[Guest]) -> Iterator[tuple[str, Witness]]:
    yield "host kernel log", host.kernel_log
    if host.description.silicon:
        yield "CMDQV: last commands", partial(commands, host.description.silicon)
    for guest in guests:
        name = guest.name
        yield f"{name}: console", partial(_console, guest)
        yield f"{name}: UART", guest.uart_text
        yield f"{name}: QEMU command line", partial(_command_line, guest)
        yield f"{name}: process", partial(_process, guest)
        yield f"{name}: QEMU messages", guest.qemu_messages
        yield f"{name}: QEMU trace", guest.trace_text
        if guest.spec.boundary:
            yield f"{name}: boundary", partial(_boundary, guest)
        for smmu in range(len(guest.spec.smmus)):
            yield f"{name}: event queue of smmu{smmu}", partial(_queue, guest, smmu)
        yield f"{name}: kernel log", partial(_kernel_log, guest)


def _kernel_log(guest: Guest) -> str:
    guest.run("true", timeout=10)  # wait less long for a guest that does not answer
    return guest.kernel_log()


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


def _boundary(guest: Guest) -> str:
    return "\n".join(str(entry) for entry in Boundary(guest).entries())


def _command_line(guest: Guest) -> str:
    return shlex.join(guest.command_line())


def _console(guest: Guest) -> str:
    return guest.host_file(guest.paths.console_log).replace("\r", "")


def _queue(guest: Guest, smmu: int) -> str:
    """Return the event queue's registers and its latest records, a line each, the latest last."""
    queue = guest.event_queue(smmu)
    geometry = queue.geometry()
    prod, cons = queue.prod, queue.cons
    head = f"{geometry.entries} entries at {geometry.address:#x}, PROD {prod:#x}, CONS {cons:#x}"
    records = queue.latest(QUEUE_RECORDS)
    return "\n".join([head, *(str(record) for record in records)])
