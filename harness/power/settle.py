"""Wait until a host's power is as it was asked to be."""

from __future__ import annotations

from harness.host.power import HostPower, PowerState
from harness.waiting import wait_for

#: A server that is told to turn off or on says so within some ten seconds.
SETTLE_SECONDS = 60.0
_ASK_SECONDS = 1.0


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
