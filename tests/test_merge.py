"""The rule Merge imitates an SMMU that merges equal events, for all guests of such a host."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.artifacts.store import Store
from harness.boundary.client import CMDQV, SMMUV3, Boundary, behind_boundary, merging
from harness.boundary.on_host.rules import Depth, Drop, Merge, Sifted
from harness.errors import HarnessError, LabError
from harness.guest.description import BoundarySpec, GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest
from harness.host.ability import ANY, READER
from harness.host.host import Host
from harness.lab import pool
from harness.lab.inventory import HostEntry, Inventory, Virtual
from harness.lab.pool import Hosts
from harness.lab.software import Software
from harness.progress import Progress
from harness.smmu.loss import count_lost
from harness.smmu.vevents import INT_MAX, VEvent, lost_events, successor

SECOND = SMMUV3._replace(slot=1)
ONE = GuestSpec(smmus=(SmmuSpec(devices=(ANY,)),))
TWO = GuestSpec(
    smmus=(SmmuSpec(devices=(ANY,)), SmmuSpec(accel=False), SmmuSpec(devices=(READER,)))
)


def event(sequence: int, which: int = 0) -> bytes:
    return VEvent(sequence, bytes([which]) * 32).encode()


def header(sequence: int) -> bytes:
    return lost_events(sequence).encode()


# -- one read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("came", "before", "kept", "removed"),
    [
        pytest.param(
            [event(0), event(1), event(2, 1), event(3), event(4, 2)],
            0,
            [event(0), event(1, 1), event(2, 2)],
            [event(1), event(3)],
            id="closed-up",
        ),
        pytest.param([event(7), event(8, 1)], 3, [event(4), event(5, 1)], [], id="earlier-reads"),
        pytest.param(
            [event(0), event(3), event(5, 1)],
            0,
            [event(0), event(4, 1)],
            [event(3)],
            id="gaps-stay",
        ),
        pytest.param(
            [event(0), event(1), header(4)], 0, [event(0), header(3)], [event(1)], id="header"
        ),
        pytest.param([header(4), header(5)], 0, [header(4), header(5)], [], id="headers-differ"),
        pytest.param(
            [event(INT_MAX), event(0), event(1, 1)],
            2,
            [event(INT_MAX - 2), event(INT_MAX - 1, 1)],
            [event(0)],
            id="wrap-in-the-kernel",
        ),
        pytest.param([event(1), event(2, 1)], 2, [event(INT_MAX), event(0, 1)], [], id="wrap"),
    ],
)
def test_equal_events_of_one_read_are_one(
    came: list[bytes], before: int, kept: list[bytes], removed: list[bytes]
) -> None:
    assert Merge().sift(came, before) == Sifted(kept, removed)


@pytest.mark.parametrize("byte", range(32))
def test_events_that_differ_anywhere_are_two(byte: int) -> None:
    other = bytearray(event(1))
    other[8 + byte] ^= 1
    came = [event(0), bytes(other)]
    assert Merge().sift(came, 0) == Sifted(came, [])


# -- many reads ------------------------------------------------------------------------------

#: What the kernel does for one read: for each event how many were lost before it, and which it is;
#: and how many were lost at the end, which a header tells.
READS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6),
        st.integers(0, 2),
    ),
    max_size=5,
)


def reads(drawn: list[tuple[list[tuple[int, int]], int]], first: int) -> list[list[bytes]]:
    """Return the records of the drawn reads, the first event having the number `first`."""
    number, out = first, []
    for events, lost in drawn:
        read = []
        for gap, which in events:
            number = (number + gap) & INT_MAX
            read.append(event(number, which))
            number = successor(number)
        if lost:
            number = (number + lost) & INT_MAX
            read.append(header((number - 1) & INT_MAX))
        out.append(read)
    return out


def losses(records: Sequence[bytes], first: int) -> list[tuple[bytes, int]]:
    """Return the data of each record, and how many events were lost so far."""
    decoded = [VEvent.decode(one) for one in records]
    before = (first - 1) & INT_MAX
    return [
        (one.data, count_lost(decoded[: place + 1], after=before))
        for place, one in enumerate(decoded)
    ]


@given(READS, st.integers(0, INT_MAX))
@example([([(0, 0), (0, 0), (1, 1)], 1), ([(0, 0)], 0)], INT_MAX)
def test_merging_loses_nothing_but_equal_events(
    drawn: list[tuple[list[tuple[int, int]], int]], first: int
) -> None:
    came = reads(drawn, first)
    sent: list[bytes] = []
    gone: list[bytes] = []
    for read in came:
        kept, removed = Merge().sift(read, len(gone))
        events = [VEvent.decode(one).data for one in kept if one[8:]]
        assert len(set(events)) == len(events), "two equal events of one read"
        assert {VEvent.decode(one).data for one in removed} <= set(events)
        assert len(kept) + len(removed) == len(read)
        sent += kept
        gone += removed
    whole = [record for read in came for record in read]
    told = zip(whole, losses(whole, first), strict=True)
    stayed = [one for record, one in told if record not in gone]
    assert losses(sent, first) == stayed


# -- descriptions ----------------------------------------------------------------------------


def test_each_accelerated_smmu_of_a_plain_guest_merges() -> None:
    assert merging(TWO) == behind_boundary(TWO, {SMMUV3: [Merge()], SECOND: [Merge()]})


def test_a_boundary_keeps_its_rules_its_reads_and_its_program() -> None:
    described = behind_boundary(ONE, {CMDQV: [Drop()], SMMUV3: [Depth(8)]}, reads=True)
    merged = behind_boundary(ONE, {CMDQV: [Drop()], SMMUV3: [Depth(8), Merge()]}, reads=True)
    assert merging(described) == merged

    other = dataclasses.replace(ONE, boundary=BoundarySpec("another.program"))
    boundary = merging(other).boundary
    assert boundary
    assert boundary.package == "another.program"


def test_merging_twice_is_merging_once() -> None:
    assert merging(merging(TWO)) == merging(TWO)


def test_a_command_queue_has_no_events_to_merge() -> None:
    with pytest.raises(HarnessError, match="merge: queue is 'TEGRA241_CMDQV'; allowed: ARM_SMMUV3"):
        behind_boundary(ONE, {CMDQV: [Merge()]})


def test_a_running_guest_does_not_begin_to_merge() -> None:
    guest = cast(Guest, SimpleNamespace(name="one", spec=behind_boundary(ONE)))
    with pytest.raises(HarnessError, match="from the guest's start to its end, or not at all"):
        Boundary(guest).apply(Drop(), Merge())


# -- hosts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("merges", [False, True])
def test_the_guests_of_a_host_that_merges_run_behind_the_rule(
    merges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object, **__: object) -> Any:
        return contextlib.nullcontext(SimpleNamespace(name="one", console=None, power=None))

    for name in ("reserved", "provided", "opened"):
        monkeypatch.setattr(pool, name, nothing)
    monkeypatch.setattr(Software, "applied", lambda *_: (None, None))
    lab = Inventory(lab="mine", hosts=(HostEntry(name="one", virtual=Virtual(), merging=merges),))

    _, fleet = Hosts(lab, Software(), Store(tmp_path), Progress(enabled=False)).open("one")

    assert fleet.adapt(ONE) == (merging(ONE) if merges else ONE)


def test_a_fleet_has_the_guests_as_the_host_has_them() -> None:
    description = SimpleNamespace(devices={})
    bare = SimpleNamespace(name="bare", console=None, devices={}, description=description)
    host = cast(Host, bare)
    other = GuestSpec(smmus=(SmmuSpec(devices=(READER,)),))
    fleet = Fleet(host, Progress(enabled=False), adapt=lambda asked: other if asked == ONE else ONE)
    with pytest.raises(LabError, match="host bare does not have"), fleet.guests([ONE]):
        pass
