"""A vEVENTQ's file is closed while the queue is destroyed."""

from __future__ import annotations

from harness.errors import LabError
from harness.guest.fleet import Fleet
from harness.host.last_words import HostKernelError
from harness.host.races import close_and_destroy
from harness.reproduce.show import Say

#: How often a queue is closed and destroyed.
CLOSED = 200


def _show(fleet: Fleet, say: Say) -> bool:
    """Close vEVENTQs while they are destroyed, until the host's kernel dies of it."""
    host = fleet.host
    if "slab-poisoning" not in host.capabilities:
        raise LabError(
            f"host {host.name} does not poison freed memory: a use of it would not be seen",
            fix="choose a host with a debug kernel, or boot this one with slab_debug=FZP",
        )
    say(f"{CLOSED} times, a vEVENTQ's file is closed while the queue is destroyed, in a kernel")
    say("with slab poisoning; nothing should come of it")
    try:
        close_and_destroy(host, CLOSED)
        fleet.check()
    except (LabError, HostKernelError) as problem:
        try:
            fleet.check(problem)
        except HostKernelError as death:
            say(death.message)
            return True
        raise
    say("nothing came of it")
    return False


SHOW = _show
