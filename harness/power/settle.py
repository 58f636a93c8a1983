"""Wait until a host's power is as it was asked to be, and gone where it was turned off."""

from __future__ import annotations

import time

from harness.host.power import HostPower, PowerState
from harness.waiting import wait_for

#: A server that is told to turn off or on says so within some ten seconds.
SETTLE_SECONDS = 60.0
_ASK_SECONDS = 1.0
#: How long a socket is off when a host is restarted: its power supply holds on for a while.
OFF_SECONDS = 5.0


def settled(power: HostPower, wanted: PowerState, host: str) -> None:
    """Wait until the power of `host` is as wanted, or cannot be known. Raises LabError."""
    seen = PowerState.UNKNOWN

    def is_so() -> bool:
        nonlocal seen
        seen = power.state()
        return seen in (wanted, PowerState.UNKNOWN)

    wait_for(
        f"host {host} to be {wanted}",
        is_so,
        deadline=SETTLE_SECONDS,
        interval=_ASK_SECONDS,
        last_seen=lambda: seen,
    )


def emptied(host: str) -> None:
    """Wait until the power supply of `host`, which was turned off, has run empty: one that is
    turned on before may have noticed nothing."""
    since = time.monotonic()
    wait_for(
        f"the power supply of host {host} to run empty",
        lambda: time.monotonic() - since >= OFF_SECONDS,
        deadline=OFF_SECONDS + 1.0,
    )
