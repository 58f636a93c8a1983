"""Power by IPMI, for machines without Redfish: by ipmitool(1)."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from harness.errors import LabError
from harness.host.power import PowerState, PowerUnsupportedError
from harness.host.target import ADDRESS, LONGEST_ADDRESS
from harness.power.settle import settled
from harness.secret import Password, Secret

#: How long an answer of a BMC is waited for. ipmitool asks again meanwhile.
ANSWER_SECONDS = 30.0
#: The longest password that IPMI 2.0 knows, in bytes (IPMI v2.0, 22.30).
LONGEST_PASSWORD = 20
#: What ipmitool says of a command that the BMC does not know: completion codes C1h, CCh and D5h.
_NOT_KNOWN = re.compile("Invalid command|Invalid data field|not supported", re.IGNORECASE)


class IpmiBmc(Password):
    """A BMC that is reached by IPMI 2.0 over a network (RMCP+)."""

    address: Annotated[
        str,
        Field(
            pattern=ADDRESS,
            max_length=LONGEST_ADDRESS,
            description="a host name or IP address of the BMC",
        ),
    ]
    port: Annotated[int, Field(ge=1, le=65535, description="a UDP port, 1 to 65535")] = 623
    user: Annotated[str, Field(min_length=1, max_length=16, description="a user of the BMC")]
    cipher: Annotated[
        int | None,
        Field(
            ge=1,
            le=17,
            description="number of the cipher suite, such as 3 or 17; without it, ipmitool asks "
            "the BMC",
        ),
    ] = None

    def command_line(self, *command: str) -> list[str]:
        """Return the command line that has the BMC do something. The password is not on it."""
        cipher = [] if self.cipher is None else ["-C", str(self.cipher)]
        where = ["-H", self.address, "-p", str(self.port), "-U", self.user]
        return ["ipmitool", "-I", "lanplus", *cipher, *where, "-E", *command]

    def checked_password(self, whose: str) -> Secret:
        """Return the password. Raises LabError."""
        password = self.password(whose)
        if len(password.reveal().encode()) > LONGEST_PASSWORD:
            raise LabError(
                f"{whose}: its password is longer than IPMI allows, {LONGEST_PASSWORD} bytes",
                fix="give the BMC's user a shorter one, or use Redfish",
            )
        return password


def environment(password: Secret) -> dict[str, str]:
    """Return the environment of ipmitool, which has the password. Do not keep it in a variable."""
    return {**os.environ, "LC_ALL": "C", "IPMI_PASSWORD": password.reveal()}


class IpmiPower(IpmiBmc):
    """A BMC that controls a host's power by IPMI."""

    def control(self, host: str) -> IpmiControl:
        return IpmiControl(self, host)


@dataclass(frozen=True)
class IpmiControl:
    """The power of a host by the IPMI of its BMC. It is a HostPower."""

    bmc: IpmiPower
    host: str

    def state(self) -> PowerState:
        said = self._power("status")
        found = re.search(r"Chassis Power is (on|off)", said)
        return PowerState(found[1]) if found else PowerState.UNKNOWN

    def on(self) -> None:
        self._power("on")
        settled(self, PowerState.ON, self.host)

    def off(self) -> None:
        self._power("off")
        settled(self, PowerState.OFF, self.host)

    def cycle(self) -> None:
        if self.state() is PowerState.OFF:
            self.on()
        else:
            self._power("reset")

    def nmi(self) -> None:
        self._power("diag")

    def _power(self, action: str) -> str:
        """Return what ipmitool prints for an action. Raises LabError."""
        whose = f"the BMC of host {self.host}"
        password = self.bmc.checked_password(whose)
        try:
            ended = subprocess.run(
                self.bmc.command_line("chassis", "power", action),
                env=environment(password),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ANSWER_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            raise no_ipmitool(whose) from None
        except subprocess.TimeoutExpired:
            raise LabError(
                f"{whose} at {self.bmc.address} did not answer within {ANSWER_SECONDS:.0f} s",
                fix="check power.ipmi in the inventory, and that the BMC is up",
            ) from None
        if ended.returncode == 0:
            return ended.stdout
        said = password.hide(complaint(ended.stderr or ended.stdout))
        if _NOT_KNOWN.search(said):
            raise PowerUnsupportedError(f"{whose} cannot do `chassis power {action}`: {said}")
        raise LabError(
            f"{whose} at {self.bmc.address} does not do `chassis power {action}`: {said}",
            fix="check user, password and cipher of power.ipmi in the inventory, and that IPMI "
            "over LAN is enabled on the BMC",
        )


def no_ipmitool(whose: str) -> LabError:
    return LabError(f"{whose}: this machine has no ipmitool", fix="apt-get install ipmitool")


def complaint(said: str) -> str:
    """Return what ipmitool says of a failure, without what it says each time on Debian."""
    lines = [one.strip() for one in said.splitlines() if "IANA PEN" not in one and one.strip()]
    return "; ".join(lines) or "it gives no reason"
