"""Power by a switched socket or PDU, of all models that labgrid knows (labgrid.driver.power)."""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import Field

from harness.errors import LabError
from harness.host.power import PowerState, PowerUnsupportedError
from harness.power.settle import emptied, settled
from harness.secret import Secret
from harness.strict_yaml import Strict

#: How long a PDU may take to answer. Most of labgrid's modules wait without a limit.
ANSWER_SECONDS = 30.0


class PduPower(Strict):
    """A socket of a PDU. labgrid's NetworkPowerPort has the same fields."""

    model: Annotated[
        str,
        Field(
            pattern="^[a-z][a-z0-9_]*$",
            description="a model that labgrid knows, such as netio, raritan or simplerest",
        ),
    ]
    address: Annotated[
        str, Field(min_length=1, description="the PDU's host name, or URL, as its model has it")
    ]
    index: Annotated[int, Field(ge=0, description="number of the socket, as the model counts")] = 0

    def control(self, host: str) -> PduControl:
        return PduControl(self, host)


@dataclass(frozen=True)
class PduControl:
    """The power of a host by a PDU. It is a HostPower. A PDU knows of its socket only, not whether
    the host has started."""

    pdu: PduPower
    host: str

    def state(self) -> PowerState:
        module = _module(self.pdu.model)
        if not hasattr(module, "power_get"):
            return PowerState.UNKNOWN
        on = self._ask(module, module.power_get)
        return PowerState.ON if on else PowerState.OFF

    def on(self) -> None:
        self._set(PowerState.ON)

    def off(self) -> None:
        self._set(PowerState.OFF)

    def cycle(self) -> None:
        self.off()
        emptied(self.host)
        self.on()

    def nmi(self) -> None:
        raise PowerUnsupportedError(
            f"the PDU of host {self.host} sends no diagnostic interrupt",
            fix="only a BMC can: name it as `bmc` or `power` in the inventory, if there is one",
        )

    def _set(self, state: PowerState) -> None:
        module = _module(self.pdu.model)
        self._ask(module, module.power_set, state is PowerState.ON)
        settled(self, state, self.host)

    def _ask(self, module: Any, call: Callable[..., Any], *more: bool) -> Any:
        """Call a function of the model's module and return its value. Raises LabError."""
        # A module that names a port speaks to that; to any other the address is all.
        port = getattr(module, "PORT", None)
        answer: list[Any] = []
        problem: list[Exception] = []

        def ask() -> None:
            try:
                answer.append(call(self.pdu.address, port, str(self.pdu.index), *more))
            # The modules raise whatever their libraries do.
            except Exception as one:
                problem.append(one)

        thread = threading.Thread(target=ask, name=f"PDU of {self.host}", daemon=True)
        thread.start()
        thread.join(ANSWER_SECONDS)
        if answer:
            return answer[0]
        why = f"no answer within {ANSWER_SECONDS:.0f} s"
        if problem:
            why = _without_login(self.pdu.address, f"{type(problem[0]).__name__}: {problem[0]}")
        raise LabError(
            f"the PDU {self.pdu.model} of host {self.host} does not do as asked: {why}",
            fix="check its model, address and index, in labgrid's exporter or in the inventory",
        )


def _without_login(address: str, text: str) -> str:
    """Return a text without the user and the password that an address may have, as in
    http://USER:PASSWORD@HOST. Libraries say which address they asked."""
    found = re.search(r"//([^/?#\s]*)@", address)
    if not found:
        return text
    password = found[1].partition(":")[2]
    for one in (found[1], password, unquote(password)):
        text = Secret(one).hide(text)
    return text


def _module(model: str) -> Any:
    """Return labgrid's module of a model. Raises LabError."""
    try:
        return importlib.import_module(f"labgrid.driver.power.{model}")
    except ModuleNotFoundError as problem:
        if problem.name == f"labgrid.driver.power.{model}":
            raise LabError(
                f"labgrid knows no PDU of the model {model}",
                fix="name one of the modules in labgrid/driver/power",
            ) from None
        package = str(problem.name).partition(".")[0]
        raise LabError(
            f"power by a PDU of the model {model} needs the Python package {package}",
            fix="pip install 'grace-smmu-hil[labgrid]'"
            if package == "labgrid"
            else f"pip install {package}",
        ) from None
