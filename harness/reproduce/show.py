"""What reproducers have in common."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest
from harness.host.ability import ANY, READER

#: Print a line that tells the reader what is done or found.
Say = Callable[[str], None]
#: Perform the steps that cause a defect on a host, print them, and return whether the defect is
#: there. Raises ProductError if that cannot be told because something else is wrong.
Show = Callable[[Fleet, Say], bool]

PLAIN = GuestSpec(smmus=(SmmuSpec(devices=(READER,)),))
#: An SMMU whose only device is plugged later. With a CMDQV that device would have to stay.
PLUGGED = SmmuSpec(hot=(ANY,), properties=(("cmdqv", "off"),))


def in_guest(
    guest: GuestSpec, show: Callable[[Guest, Say], bool], *, kernel_report: str | None = None
) -> Show:
    """Return what shows a defect in a clean guest of this description. `kernel_report` is a regular
    expression for what a kernel reports because of the defect (Watch.expecting)."""

    def show_there(fleet: Fleet, say: Say) -> bool:
        expected = [] if kernel_report is None else [kernel_report]
        with fleet.watch.expecting(expected), fleet.guests([guest]) as (running,):
            say(f"$ {shlex.join(running.command_line())}\n")
            return show(running, say)

    return show_there
