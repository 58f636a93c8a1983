"""What a failed test leaves for its reader: every witness, each collected on its own, so that one
that is gone does not take the others with it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from harness.errors import HilError
from harness.guest.guest import Guest
from harness.host.host import Host

#: Of a log, its end is what a reader wants; an attachment stays readable in a browser.
LONGEST = 512 * 1024
QUEUE_RECORDS = 2000


@dataclass(frozen=True)
class Evidence:
    """One attachment: text."""

    name: str
    text: str


def collect(host: Host, guests: list[Guest]) -> Iterator[Evidence]:
    """Everything there is, now. Never raises for a witness that does not answer."""
    yield _try("host kernel log", host.kernel_log)
    for guest in guests:
        mine = guest.name
        yield _try(f"{mine}: console", partial(_console, guest))
        yield _try(f"{mine}: kernel log", guest.kernel_log)
        yield _try(f"{mine}: QEMU command line", partial(_command_line, guest))
        yield _try(f"{mine}: QEMU messages", guest.qemu_messages)
        yield _try(f"{mine}: QEMU trace", guest.trace_text)
        for smmu in range(len(guest.identity.spec.smmus)):
            name = f"{mine}: event queue of smmu{smmu}"
            yield _try(name, partial(_queue, guest, smmu))


def _try(name: str, witness: Callable[[], str]) -> Evidence:
    try:
        text = witness()
    except (HilError, OSError, ValueError) as problem:
        text = f"not available: {problem}"
    if len(text) > LONGEST:
        text = f"[{len(text) - LONGEST} characters before this are left out]\n{text[-LONGEST:]}"
    return Evidence(name, text)


def _command_line(guest: Guest) -> str:
    return shlex.join(guest.command_line())


def _console(guest: Guest) -> str:
    log = guest.session.connection.read_file(guest.paths.console_log)
    return log.decode(errors="replace").replace("\r", "")


def _queue(guest: Guest, smmu: int) -> str:
    """The latest records, oldest first, with the registers."""
    queue = guest.event_queue(smmu)
    geometry = queue.geometry()
    prod, cons = queue.prod, queue.cons
    head = f"{geometry.entries} entries at {geometry.address:#x}, PROD {prod:#x}, CONS {cons:#x}"
    records = queue.latest(QUEUE_RECORDS)
    return "\n".join([head, *(str(record) for record in records)])
