"""The virtual hosts that benchmarks run on: benchmarks/lab.yaml."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from harness.artifacts.store import Store
from harness.host.host import Host
from harness.lab import inventory
from harness.lab.inventory import HostEntry
from harness.lab.provide import describe_virtual, machine
from harness.progress import Progress
from harness.virtual.machine import VirtualMachine

LAB = Path(__file__).parents[1] / "lab.yaml"
PLAIN, CMDQV = "bench", "bench-cmdqv"
#: The program that starts benchmarks shows how far they are.
SILENT = Progress(enabled=False)


def build(progress: Progress) -> None:
    """Build what the hosts of lab.yaml are made of, if it is not in the cache. Raises LabError."""
    for entry in inventory.load(LAB).hosts:
        vm = machine(entry, Store(), progress)
        assert vm is not None, "it is virtual"
        vm.build()


@contextlib.contextmanager
def own_machine(name: str = PLAIN) -> Iterator[tuple[HostEntry, VirtualMachine]]:
    """Yield a host of lab.yaml, built and down. It is down in the end, whoever has brought it up
    meanwhile. Raises LabError."""
    entry = inventory.load(LAB).host(name)
    vm = machine(entry, Store(), SILENT)
    assert vm is not None, "it is virtual"
    vm.build()
    # A call that was killed has left it, or another checkout has.
    vm.down()
    try:
        yield entry, vm
    finally:
        vm.down()


@contextlib.contextmanager
def own_host(name: str = PLAIN) -> Iterator[Host]:
    """Yield a host of lab.yaml, open. Raises LabError."""
    with own_machine(name) as (entry, vm):
        with Host.open(describe_virtual(entry, vm, vm.up())) as host:
            yield host
