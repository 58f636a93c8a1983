"""Power by Redfish, which the BMC of a Grace has (OpenBMC)."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from harness.errors import LabError
from harness.host.power import PowerState, PowerUnsupportedError
from harness.power.settle import settled
from harness.secret import Password
from harness.strict_yaml import HomePath

#: How long a BMC is waited for, to accept a connection and to answer.
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
URL = r"^https?://[A-Za-z0-9\[][A-Za-z0-9.:\[\]_-]*/?$"


def _checked(url: str) -> str:
    if not re.fullmatch(URL, url):
        # It may have a password, as in https://USER:PASSWORD@HOST.
        raise ValueError("url: found what is no address such as https://grace-1-bmc.lab.example")
    parts = urlsplit(url)
    if parts.scheme == "http" and not _is_here(parts.hostname or ""):
        raise ValueError(f"url: found {url!r}; the password needs https://")
    return url


def _is_here(name: str) -> bool:
    if name == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return False


class RedfishPower(Password):
    """A BMC that is reached by Redfish."""

    url: Annotated[
        str,
        AfterValidator(_checked),
        Field(
            json_schema_extra={"pattern": URL},
            description="address of the BMC, such as https://grace-1-bmc.lab.example; http:// is "
            "for an address of this machine only",
        ),
    ]
    user: Annotated[str, Field(min_length=1, max_length=64, description="a user of the BMC")]
    certificate: Annotated[
        HomePath | None,
        Field(
            description="path of a PEM file with the BMC's own certificate, or with that of the CA "
            "that signed it; without it, the CAs that this machine trusts"
        ),
    ] = None
    system: Annotated[
        str | None,
        Field(
            min_length=1,
            description="name of the host in the BMC's list of systems, if that has several",
        ),
    ] = None

    def control(self, host: str) -> RedfishControl:
        return RedfishControl(self, host)


@dataclass(frozen=True)
class RedfishControl:
    """The power of a host by the Redfish of its BMC. It is a HostPower."""

    bmc: RedfishPower
    host: str

    def state(self) -> PowerState:
        with self._system() as system:
            said = system.power_state
        # PoweringOn and PoweringOff are neither yet, and it can tell later.
        states = {"On": PowerState.ON, "PoweringOff": PowerState.ON}
        states |= {"Off": PowerState.OFF, "PoweringOn": PowerState.OFF}
        return states.get(said.value if said else "", PowerState.UNKNOWN)

    def on(self) -> None:
        if self.state() is not PowerState.ON:
            self._reset("ON")
        settled(self, PowerState.ON, self.host)

    def off(self) -> None:
        if self.state() is not PowerState.OFF:
            self._reset("FORCE_OFF")
        settled(self, PowerState.OFF, self.host)

    def cycle(self) -> None:
        if self.state() is PowerState.OFF:
            self.on()
            return
        try:
            self._reset("FORCE_RESTART")
        except PowerUnsupportedError:
            self.off()
            self.on()

    def nmi(self) -> None:
        self._reset("NMI")

    def _reset(self, kind: str) -> None:
        """Reset the system; `kind` is a member of sushy.ResetType (Redfish: ResetType)."""
        with self._system() as system:
            wanted = getattr(_sushy().ResetType, kind)
            if wanted not in system.get_allowed_reset_system_values():
                raise PowerUnsupportedError(
                    f"the BMC of host {self.host} has no reset of the kind {wanted.value}"
                )
            system.reset_system(wanted)

    @contextmanager
    def _system(self) -> Iterator[Any]:
        """Yield the host among the BMC's systems. Whatever goes wrong in the body is told as of the
        BMC. Raises LabError."""
        sushy, whose = _sushy(), f"the BMC of host {self.host}"
        password = self.bmc.password(whose)
        verify = str(self.bmc.certificate) if self.bmc.certificate else True
        if self.bmc.certificate and not self.bmc.certificate.is_file():
            raise LabError(
                f"{whose}: certificate {self.bmc.certificate} is no file",
                fix="correct power.redfish.certificate in the inventory",
            )
        try:
            # Not a session of Redfish: a BMC has few, and a killed run would leave one.
            root = sushy.Sushy(
                self.bmc.url,
                # As bytes: requests would make ISO-8859-1 of a text, and fail where that lacks a
                # character. RFC 7617 has UTF-8.
                auth=sushy.auth.BasicAuth(self.bmc.user.encode(), password.reveal().encode()),
                verify=verify,
                server_side_retries=1,
                connect_timeout=CONNECT_SECONDS,
                read_timeout=ANSWER_SECONDS,
            )
            yield self._chosen(root.get_system_collection().get_members())
        except sushy.exceptions.AccessError:
            raise LabError(
                f"{whose} at {self.bmc.url} refuses user {self.bmc.user} or the password",
                fix="correct `user` or what has the password; the user must be an operator there",
            ) from None
        except (sushy.exceptions.SushyError, OSError) as problem:
            said = " ".join(password.hide(str(problem)).split())
            raise LabError(
                f"{whose} at {self.bmc.url} does not do as asked: {said}", fix=_fix(said)
            ) from None

    def _chosen(self, systems: list[Any]) -> Any:
        wanted = self.bmc.system
        found = [one for one in systems if wanted in (None, one.name, one.identity)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(str(one.name or one.identity) for one in systems)
        raise LabError(
            f"the BMC of host {self.host} has {len(found)} systems that may be meant, of {names}",
            fix="name one of them as power.redfish.system in the inventory",
        )


def _fix(said: str) -> str:
    if "certificate" in said.lower():
        return (
            "name the BMC's certificate as power.redfish.certificate in the inventory; "
            "`openssl s_client -showcerts -connect HOST:443` shows it: compare it with the BMC's"
        )
    return "check power.redfish.url in the inventory, and that the BMC is up"


def _sushy() -> Any:
    """Return the library, which takes time to import. Raises LabError if it is not there."""
    try:
        import sushy
        import sushy.auth
    except ImportError:
        raise LabError(
            "power by Redfish needs the Python package sushy",
            fix="pip install 'grace-smmu-hil[redfish]'",
        ) from None
    # It logs failures that are reported here as errors.
    logging.getLogger("sushy").setLevel(logging.CRITICAL)
    return sushy
