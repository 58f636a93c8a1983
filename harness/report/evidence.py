"""What a failed test leaves for its reader: every witness, each collected on its own, so that one
that is gone does not take the others with it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from harness.boundary.client import Boundary
from harness.errors import HilError
from harness.guest.guest import Guest
from harness.host.connection import LinkLostError, UnreachableError
from harness.host.host import Host, Silicon

#: Of a log, its end is what a reader wants; an attachment stays readable in a browser.
LONGEST = 512 * 1024
QUEUE_RECORDS = 2000
COMMANDS = 500


@dataclass(frozen=True)
class Evidence:
    """One attachment: text."""

    name: str
    text: str


Witness = Callable[[], str]


def collect(host: Host, guests: list[Guest]) -> Iterator[Evidence]:
    """Everything there is, now. Never raises for a witness that does not answer."""
    return ask(_witnesses(host, guests))


def ask(witnesses: Iterable[tuple[str, Witness]]) -> Iterator[Evidence]:
    """Ask each in turn. Once the host does not answer nobody on it is asked any more: each would
    be waited for."""
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
        mine = guest.name
        yield f"{mine}: console", partial(_console, guest)
        yield f"{mine}: UART", guest.uart_text
        yield f"{mine}: QEMU command line", partial(_command_line, guest)
        yield f"{mine}: process", partial(_process, guest)
        yield f"{mine}: QEMU messages", guest.qemu_messages
        yield f"{mine}: QEMU trace", guest.trace_text
        if guest.spec.boundary:
            yield f"{mine}: boundary", partial(_boundary, guest)
        for smmu in range(len(guest.spec.smmus)):
            yield f"{mine}: event queue of smmu{smmu}", partial(_queue, guest, smmu)
        yield f"{mine}: kernel log", partial(_kernel_log, guest)


def _kernel_log(guest: Guest) -> str:
    guest.run("true", timeout=10)  # a guest that is silent is not waited for twice
    return guest.kernel_log()


def commands(silicon: Silicon) -> str:
    """What guests' command queues had done last; latest last."""
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
    """The latest records, oldest first, with the registers."""
    queue = guest.event_queue(smmu)
    geometry = queue.geometry()
    prod, cons = queue.prod, queue.cons
    head = f"{geometry.entries} entries at {geometry.address:#x}, PROD {prod:#x}, CONS {cons:#x}"
    records = queue.latest(QUEUE_RECORDS)
    return "\n".join([head, *(str(record) for record in records)])
