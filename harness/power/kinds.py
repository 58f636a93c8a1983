"""The entry `power` of an inventory: one of the kinds of this folder."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from harness.host.power import HostPower
from harness.power.command import CommandPower
from harness.power.ipmi import IpmiPower
from harness.power.pdu import PduPower
from harness.power.redfish import RedfishPower
from harness.strict_yaml import Strict, only


class PowerEntry(Strict):
    """What controls a host's power."""

    redfish: Annotated[
        RedfishPower | None,
        Field(description=f"a mapping of {', '.join(RedfishPower.model_fields)}"),
    ] = None
    ipmi: Annotated[
        IpmiPower | None, Field(description=f"a mapping of {', '.join(IpmiPower.model_fields)}")
    ] = None
    command: Annotated[
        CommandPower | None,
        Field(description=f"a mapping of {', '.join(CommandPower.model_fields)}"),
    ] = None
    pdu: Annotated[
        PduPower | None, Field(description=f"a mapping of {', '.join(PduPower.model_fields)}")
    ] = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        only(self)
        return self

    def control(self, host: str) -> HostPower:
        """Return the power of the host of this name."""
        kind: RedfishPower | IpmiPower | CommandPower | PduPower = only(self)
        return kind.control(host)
