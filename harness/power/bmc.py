"""How to log in to a BMC of which somebody else says where it is: a place of labgrid."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.power.ipmi import IpmiPower
from harness.power.kinds import PowerEntry
from harness.power.redfish import RedfishPower
from harness.secret import Password
from harness.strict_yaml import HomePath


class BmcEntry(Password):
    """What a place does not say of its BMC."""

    kind: Annotated[
        Literal["redfish", "ipmi"], Field(description="how the BMC is reached: redfish or ipmi")
    ] = "redfish"
    certificate: Annotated[
        HomePath | None,
        Field(
            description="with redfish, path of a PEM file with the BMC's own certificate, or with "
            "that of its CA"
        ),
    ] = None
    cipher: Annotated[
        int | None, Field(ge=1, le=17, description="with ipmi, number of the cipher suite")
    ] = None

    def power(self, address: str, port: int | None, user: str) -> PowerEntry:
        """Return the power that this BMC controls; without `port`, its kind's own. Raises
        pydantic's ValidationError for what no BMC can have."""
        password = {
            name: value
            for name in Password.model_fields
            if (value := getattr(self, name)) is not None
        }
        if self.kind == "redfish":
            host = f"[{address}]" if ":" in address else address
            url = f"https://{host}" + (f":{port}" if port else "")
            bmc = {"url": url, "user": user, "certificate": self.certificate, **password}
            return PowerEntry(redfish=RedfishPower.model_validate(bmc))
        there = {"address": address, "user": user, "cipher": self.cipher, **password}
        if port:
            there["port"] = port
        return PowerEntry(ipmi=IpmiPower.model_validate(there))
