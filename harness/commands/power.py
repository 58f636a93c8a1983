"""`hil lab power`: turn a host on or off, restart it, interrupt it, or ask whether it is on."""

from __future__ import annotations

import contextlib
import enum
from typing import Annotated

import typer

from harness.checkout import DEFAULT_LAB
from harness.commands.options import LabOption
from harness.errors import LabError
from harness.host.connection import Connection
from harness.host.power import HostPower
from harness.host.session import ReservedError, check_free
from harness.lab import calls, places
from harness.lab.inventory import HostEntry
from harness.lab.login import login
from harness.lab.provide import power as power_of
from harness.lab.reservation import reserved
from harness.progress import Progress


class Action(enum.StrEnum):
    """What can be done to a host's power."""

    ON = "on"
    OFF = "off"
    CYCLE = "cycle"
    NMI = "nmi"
    STATUS = "status"


def power(
    action: Annotated[
        Action,
        typer.Argument(
            show_choices=True,
            help="on; off, at once; cycle: restart it at once; nmi: a diagnostic interrupt, at "
            "which its kernel can panic and dump; status: print on, off or unknown.",
        ),
    ],
    host: Annotated[str, typer.Argument(metavar="HOST", help="Name of a host in the inventory.")],
    lab: LabOption = DEFAULT_LAB,
    force: Annotated[
        bool,
        typer.Option("--force", help="Do it even though a run has the host, which it then loses."),
    ] = False,
) -> None:
    """Control a host's power by what the inventory says: Redfish, IPMI, a PDU
    or commands.

    A virtual host has a power of its own. A host that a run has is left alone,
    as far as that can be known: one that does not answer says nothing. A host
    that asks for a place of labgrid must fit one place only, and nobody may
    have that.
    """
    inventory = calls.inventory(lab)
    entry = calls.host(inventory, host)
    store, progress = calls.store(), Progress()
    if entry.place is not None:
        entry = places.looked_up(inventory, entry, held_too=force or action is Action.STATUS)
    control = power_of(entry, store, progress)
    if control is None:
        raise LabError(
            f"nothing controls the power of host {entry.name}",
            fix="say in the inventory what does: docs/lab.md, Power",
        )
    if action is Action.STATUS:
        print(f"{entry.name}: {control.state()}")
        return
    with contextlib.ExitStack() as stack:
        if not force:
            stack.enter_context(reserved(entry, store.root, progress, wait=0))
            if action is not Action.ON:
                _check_free(entry)
        print(f"{entry.name}: {_done(control, action)}")


def _check_free(entry: HostEntry) -> None:
    """Raise ReservedError if a run of somebody else's has the host, as far as the host tells."""
    if entry.virtual is not None:
        return  # its reservation is all that there is
    try:
        with Connection.to(login(entry)) as link:
            check_free(link)
    except ReservedError:
        raise
    except LabError:
        pass  # it does not answer: power is for that


def _done(control: HostPower, action: Action) -> str:
    """Do it, and return what was done, in a word."""
    match action:
        case Action.ON:
            control.on()
            return "on"
        case Action.OFF:
            control.off()
            return "off"
        case Action.CYCLE:
            control.cycle()
            return "restarted"
        case _:
            control.nmi()
            return "interrupted"
