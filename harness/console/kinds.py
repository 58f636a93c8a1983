"""The entry `console` of an inventory: one of the kinds of this folder."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from harness.console.ipmi import IpmiConsole
from harness.console.source import ConsoleSource
from harness.console.ssh import SshConsole
from harness.console.tcp import TcpConsole
from harness.strict_yaml import Strict, only


class ConsoleEntry(Strict):
    """Where a host's serial console is."""

    tcp: Annotated[
        TcpConsole | None, Field(description=f"a mapping of {', '.join(TcpConsole.model_fields)}")
    ] = None
    ssh: Annotated[
        SshConsole | None, Field(description=f"a mapping of {', '.join(SshConsole.model_fields)}")
    ] = None
    ipmi: Annotated[
        IpmiConsole | None,
        Field(description=f"a mapping of {', '.join(IpmiConsole.model_fields)}"),
    ] = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        only(self)
        return self

    @property
    def source(self) -> ConsoleSource:
        found: TcpConsole | SshConsole | IpmiConsole = only(self)
        return found
