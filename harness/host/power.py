"""What controls a host's power from outside: its BMC, a switched socket, or what emulates it."""

from __future__ import annotations

import enum
from typing import Protocol

from harness.errors import LabError


class PowerState(enum.StrEnum):
    """Whether a host is on, as what controls its power says. UNKNOWN: it cannot tell."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


class PowerUnsupportedError(LabError):
    """What controls the host's power cannot do that."""


class HostPower(Protocol):
    """The power of a host. Each call raises LabError when it could not be done, and
    PowerUnsupportedError when it never can."""

    def state(self) -> PowerState: ...

    def on(self) -> None:
        """Turn the host on, unless it is; return once it is."""

    def off(self) -> None:
        """Turn the host off at once, without asking its system; return once it is."""

    def cycle(self) -> None:
        """Restart the host at once, without asking its system. One that is off is turned on."""

    def nmi(self) -> None:
        """Have the host's kernel get a diagnostic interrupt, at which it can panic, and dump."""
