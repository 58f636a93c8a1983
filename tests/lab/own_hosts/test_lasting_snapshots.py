"""A host restores guests that were booted on another one, in an earlier boot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.artifacts.store import Store
from harness.checkout import DEFAULT_LAB
from harness.devices import source
from harness.devices.dma import Direction
from harness.errors import LabError
from harness.fixtures.guests import FLOODED
from harness.guest.fleet import Fleet
from harness.host.ability import Ability
from harness.host.host import Host
from harness.host.last_words import HostKernelError
from harness.host.session import NotUndoneError
from harness.lab.inventory import HostEntry, Virtual, load
from harness.lab.provide import describe_virtual, machine
from harness.progress import Progress
from harness.virtual.lasting import LastingSnapshots
from tests.lab.broken import PROVOKE

pytestmark = pytest.mark.lab

QUIET = Progress(enabled=False)


@contextlib.contextmanager
def fleet_of(name: str, scratch: Path) -> Iterator[Fleet]:
    """Yield the fleet of a small host, which is booted now and keeps its files in `scratch`."""
    entry = HostEntry(name=name, virtual=Virtual(memory_mib=2048, smmus=1))
    vm = machine(entry, Store(), QUIET)
    assert vm
    vm.folder = scratch / name
    vm.lasting = LastingSnapshots(scratch, "alike")
    try:
        with Host.open(describe_virtual(entry, vm, vm.up())) as host:
            yield Fleet(host, QUIET, lasting=True)
    finally:
        vm.down()


def lasting(scratch: Path) -> list[Path]:
    return list((scratch / "snapshots/alike").glob("guest-*"))


def test_a_later_host_goes_on_with_guests_of_an_earlier_one(tmp_path: Path) -> None:
    with fleet_of("earlier", tmp_path) as fleet:
        with fleet.guests([FLOODED]):
            session = fleet.host.session.name
    with fleet_of("later", tmp_path) as fleet:
        assert fleet.host.session.name != session
        for _ in range(2):
            with fleet.guests([FLOODED]) as (guest,):
                assert fleet.host.session.name == session
                flooder = source(guest, Ability.WRITE, Ability.FLOOD)
                queue = guest.event_queue()
                mark = queue.mark()
                dma = flooder.burst(1, direction=Direction.WRITE)
                flooder.perform(dma)
                queue.expect(flooder.expected(dma), mark)
    (snapshot,) = lasting(tmp_path)
    with (snapshot / "memory").open("r+b") as file:
        file.write(bytes(1 << 20))
    with contextlib.suppress(NotUndoneError), fleet_of("later", tmp_path) as fleet:
        with pytest.raises(LabError), fleet.guests([FLOODED]):
            pass
        assert not lasting(tmp_path), "another test boots its guests"


@pytest.mark.parametrize("why", ["software under test", "a host that stays up", "a report"])
def test_what_a_later_run_should_not_have_goes_with_the_host(tmp_path: Path, why: str) -> None:
    with fleet_of("busy", tmp_path) as fleet:
        if why == "software under test":
            fleet.host.digests["guest_kernel"] = "of another build"
        elif why == "a host that stays up":
            fleet.host.description = replace(fleet.host.description, stay_up=None)
        else:
            fleet.host.connection.run(f"echo WARNING >{PROVOKE}")
            with pytest.raises(HostKernelError), fleet.guests([FLOODED]):
                pass
        for _ in range(2):
            with fleet.guests([FLOODED]):
                pass
        assert not lasting(tmp_path)
        assert list((tmp_path / "busy/snapshots").glob("*/guest-*"))
    assert not (tmp_path / "busy/snapshots").exists()


def test_hosts_that_are_built_alike_share_snapshots_and_no_others() -> None:
    built = {}
    for entry in load(DEFAULT_LAB).hosts:
        vm = machine(entry, Store(), QUIET)
        assert vm
        built[entry.name] = vm.lasting.built
    assert built.pop("vgrace-2") == built["vgrace"]
    assert "vgrace-debug" in built
    assert len(set(built.values())) == len(built)
