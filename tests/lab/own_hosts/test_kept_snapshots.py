"""A host restores guests that were booted on another one, in an earlier boot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.artifacts.store import Store
from harness.devices import source
from harness.devices.dma import Direction
from harness.errors import LabError
from harness.fixtures.guests import FLOODED
from harness.guest.fleet import Fleet
from harness.host.ability import Ability
from harness.host.host import Host
from harness.lab.inventory import HostEntry, Virtual
from harness.lab.provide import describe_virtual, machine
from harness.progress import Progress
from harness.virtual.kept import KeptSnapshots

pytestmark = pytest.mark.lab

QUIET = Progress(enabled=False)


@contextlib.contextmanager
def fleet_of(name: str, kept: KeptSnapshots) -> Iterator[Fleet]:
    """Yield the fleet of a small host, which is booted now."""
    entry = HostEntry(name=name, virtual=Virtual(memory_mib=2048, smmus=1))
    vm = machine(entry, Store(), QUIET)
    assert vm
    vm.kept = kept
    try:
        with Host.open(describe_virtual(entry, vm, vm.up())) as host:
            yield Fleet(host, QUIET)
    finally:
        vm.down()


def test_a_later_host_goes_on_with_guests_of_an_earlier_one(tmp_path: Path) -> None:
    kept = KeptSnapshots(Store().root, "test-of-kept")
    try:
        with fleet_of("earlier", kept) as fleet:
            with fleet.guests([FLOODED]):
                session = fleet.host.session.name
        with fleet_of("later", kept) as fleet:
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
        (memory,) = kept.root.glob(f"snapshots/{kept.built}/*/memory")
        size = memory.stat().st_size
        with memory.open("r+b") as file:
            file.write(bytes(1 << 20))
        assert memory.stat().st_size == size
        with pytest.raises(LabError), fleet_of("later", kept) as fleet:
            with fleet.guests([FLOODED]):
                pass
        assert not kept.has(memory.parent.name), "another test boots its guests"
    finally:
        kept.discard_all()
