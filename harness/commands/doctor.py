"""`hil doctor`: what a machine lacks for a lab."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated

import typer

from harness.artifacts.store import Store
from harness.checkout import DEFAULT_LAB, OUT
from harness.commands.options import LabOption, NoBuildOption
from harness.console.source import ConsoleLostError, ConsoleSource
from harness.errors import LabError
from harness.lab import calls, defaults, places, preflight
from harness.lab import doctor as checks
from harness.lab.coordinator import Coordinator
from harness.lab.doctor import Check
from harness.lab.inventory import HostEntry, Inventory
from harness.lab.places import placed
from harness.lab.provide import console, provided
from harness.lab.reservation import opened, reserved
from harness.progress import Progress

app = typer.Typer(add_completion=False)


@app.command()
def doctor(
    host: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Check for this host only, and enter it as a run does."),
    ] = None,
    lab: LabOption = DEFAULT_LAB,
    no_build: NoBuildOption = False,
) -> None:
    """Check what this machine lacks for a lab, and say what it is for and how to get it.

    A lab of virtual hosts needs tools to build them; one of other hosts needs
    few. With --host, that host is probed besides, as a test run does it; a
    virtual host is booted for that if it is not up. The exit status is 1 if
    something is missing.
    """
    inventory, store = calls.inventory(lab), calls.store()
    hosts = inventory.hosts if host is None else [calls.host(inventory, host)]
    if host is not None and no_build:
        preflight.check_built(hosts, store)
    if defaults.exists():
        print(f"ok      your defaults are in {defaults.file()}")
    missing = 0
    named = inventory.places.values() if any(one.place for one in hosts) else ()
    here = checks.checks(hosts, store, OUT, named)
    for check in (*here, *_coordinator(inventory, hosts)):
        print(f"{'ok     ' if check.met else 'MISSING'} {check.what}: {check.purpose}")
        if not check.met:
            missing += 1
            print(f"        {check.fix}")
    if host is not None:
        progress = Progress()
        with placed(inventory, hosts[0], progress) as entry:
            _enter(entry, store, progress)
    if missing:
        raise LabError(
            f"this machine lacks {missing} of the above",
            fix="run `make setup`, or do what is said below each MISSING line",
        )


def _enter(entry: HostEntry, store: Store, progress: Progress) -> None:
    """Enter a host as a run does, and print what it has."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(reserved(entry, store.root, progress))
        described = stack.enter_context(provided(entry, store, progress))
        if described.power:
            print(f"ok      power: {described.power.state()}")
        _look_at(console(entry, store, progress), entry.name)
        found = stack.enter_context(opened(described, (), progress))
        print(f"ok      kernel {found.facts.host_kernel}")
        print(f"ok      QEMU {found.facts.qemu}")
        for bdf, device in found.devices.items():
            print(f"ok      {bdf} {found.role(bdf)}, behind {device.iommu}")
        print(f"ok      capabilities: {', '.join(sorted(found.capabilities))}")


def _coordinator(lab: Inventory, hosts: Sequence[HostEntry]) -> list[Check]:
    """Return what hosts that ask for places need of labgrid's coordinator."""
    wishes = [host.place for host in hosts if host.place]
    if not wishes:
        return []
    where, purpose = f"labgrid's coordinator at {places.address(lab)}", "hands out hosts"
    try:
        with Coordinator.connected(places.address(lab)) as coordinator:
            found = [places.fitting(coordinator, wish)[0] for wish in wishes]
    except LabError as problem:
        return [Check(f"{where}: {problem.message}", purpose, False, problem.fix or "")]
    told = [Check(where, purpose, True, "")]
    for wish, fit in zip(wishes, found, strict=True):
        usable = [place.name for place in fit if not place.missing]
        told.append(
            Check(
                f"places with {places.text(wish)}: {', '.join(usable) or 'none'}",
                "are hosts",
                bool(usable),
                f"have labgrid-exporter run for a place, and `labgrid-client -p PLACE set-tags "
                f"{places.text(wish).replace(', ', ' ')}`",
            )
        )
    return told


def _look_at(source: ConsoleSource | None, host: str) -> None:
    """Open a host's console. Raises LabError if that cannot be done."""
    if source is None:
        return
    try:
        with source.open():
            print("ok      console")
    except ConsoleLostError as problem:
        raise LabError(
            f"the console of host {host} cannot be read: {problem}",
            fix="correct `console` in the inventory; a console often has one reader at a time",
        ) from None
