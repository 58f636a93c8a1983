"""Make a host's entry complete by what labgrid knows of its place: address, console, power."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from harness.console.kinds import ConsoleEntry
from harness.console.tcp import TcpConsole
from harness.errors import LabError
from harness.lab.coordinator import Place, Resource
from harness.lab.inventory import HostEntry, Inventory, MachineEntry
from harness.power.kinds import PowerEntry
from harness.power.pdu import PduPower

#: labgrid's classes.
SERVICE, SERIAL, SOCKET = "NetworkService", "NetworkSerialPort", "NetworkPowerPort"
#: What the BMC is called among the services of a place, and the host if there are others.
BMC, HOST = "bmc", "host"


def with_place(lab: Inventory, entry: HostEntry, place: Place) -> HostEntry:
    """Return the entry of a host that a place completes. What the inventory says of the place by
    its name takes precedence over what the host's entry says, and both over the place's resources.
    Raises LabError for what does not make a host."""
    told = _told(entry) | _told(lab.places.get(place.name))
    bmc = told.pop("bmc", None)
    try:
        there = _host(place)
        found: dict[str, Any] = {"address": there["address"], "user": there["username"]}
        if there.get("port"):
            found["port"] = there["port"]
        console, power = _console(place), _power(place, bmc)
        if console:
            found["console"] = console
        if power:
            found["power"] = power
        return HostEntry.model_validate(found | told)
    # An exporter passes on what is written in its file: numbers and words where others belong.
    except (KeyError, TypeError, ValueError) as problem:
        raise LabError(
            f"host {entry.name} on place {place.name}: {_reason(problem)}",
            fix=f"say in the inventory, in `places`, `{place.name}`, what labgrid does not know, "
            "such as known_hosts; or correct what the exporter says",
        ) from None


def _told(entry: MachineEntry | None) -> dict[str, Any]:
    """Return the fields that the inventory has of a host or place."""
    if entry is None:
        return {}
    return {name: getattr(entry, name) for name in entry.model_fields_set - {"place"}}


def _host(place: Place) -> dict[str, Any]:
    services = [one for one in _of(place, SERVICE) if one.name != BMC]
    found = _chosen(services, HOST)
    if found is None:
        raise LabError(
            f"place {place.name} does not say where its host is: of {len(services)} resources of "
            f"the class {SERVICE} none is called {HOST}",
            fix=f"give the place one, with `labgrid-client -p {place.name} add-named-match "
            f"EXPORTER/GROUP/{SERVICE}/NAME {HOST}`",
        )
    return dict(found.values)


def _console(place: Place) -> ConsoleEntry | None:
    found = _chosen(_of(place, SERIAL), "console")
    if found is None or not found.values.get("port"):
        return None
    where = {"address": found.values["host"], "port": found.values["port"]}
    # labgrid's own default.
    where["protocol"] = found.values.get("protocol", "rfc2217")
    return ConsoleEntry(tcp=TcpConsole.model_validate(where))


def _power(place: Place, bmc: Any) -> PowerEntry | None:
    """Return what controls the power: the BMC if the inventory says how to log in there, or else a
    socket."""
    service = _chosen([one for one in _of(place, SERVICE) if one.name == BMC], BMC)
    if bmc and service:
        there = service.values
        power: PowerEntry = bmc.power(there["address"], there.get("port"), there["username"])
        return power
    socket = _chosen(_of(place, SOCKET), "power")
    if socket is None:
        return None
    values = socket.values
    port = {"model": values["model"], "address": values["host"], "index": int(values["index"])}
    return PowerEntry(pdu=PduPower.model_validate(port))


def _of(place: Place, kind: str) -> list[Resource]:
    return [one for one in place.resources if one.kind == kind]


def _chosen(found: Sequence[Resource], name: str) -> Resource | None:
    """Return the resource of a name, or the only one there is."""
    named = [one for one in found if one.name == name]
    return named[0] if named else found[0] if len(found) == 1 else None


def _reason(problem: KeyError | TypeError | ValueError) -> str:
    if isinstance(problem, KeyError):
        return f"a resource lacks {problem}"
    if not isinstance(problem, ValidationError):
        return f"a resource has what cannot be used: {problem}"
    said = []
    for one in problem.errors():
        where = ".".join(map(str, one["loc"]))
        what = str(one["ctx"]["error"]) if one["type"] == "value_error" else one["msg"]
        said.append(f"{where}: {what}" if where else what)
    return "; ".join(said)
