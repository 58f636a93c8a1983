"""Parametrize tests over every way in which a device of any kind performs DMA.

A test gets the class of the source, and a guest with one device of its kind. It is skipped where
the host has no such device.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from _pytest.mark import ParameterSet

from harness.devices import ways
from harness.devices.dma import Direction, Dma
from harness.devices.source import FaultSource, RegisterSource
from harness.errors import HarnessError
from harness.faults.guest_tables import GuestTables
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.host.ability import Ability, of_role

Way = tuple[str, type[FaultSource]]

WAYS = ways()
#: The ways that need nothing but registers, and those that can show what they reach. Both can work
#: in the domain that the guest's kernel made for the device, whose tables GuestTables edits.
BY_REGISTERS = [(role, way) for role, way in WAYS if issubclass(way, RegisterSource)]
REACHING = [(role, way) for role, way in WAYS if Ability.REACH in way.can]
IN_TABLES = [one for one in WAYS if one in BY_REGISTERS or one in REACHING]

#: What IOVAs are above physical addresses in the window where GuestTables maps the guest's memory.
WINDOW_OFFSET = GuestTables.MAPPED.iova - GuestTables.MAPPED.output


def with_one(role: str, append: str = "", oas: str = "auto") -> GuestSpec:
    """Return a guest with one device of a kind. `append` is as in GuestSpec, `oas` the property of
    its SMMU."""
    properties = () if oas == "auto" else (("oas", oas),)
    smmu = SmmuSpec(devices=(of_role(role),), properties=properties)
    return GuestSpec(smmus=(smmu,), append=append)


def parameters(
    one: Way,
    *more: object,
    name: str = "",
    append: str = "",
    oas: str = "auto",
    freshness: Freshness = Freshness.CLEAN,
) -> ParameterSet:
    """Return a way's class and `more` as parameters of a test, with the guest that it needs. Their
    id is the role, the way and `name`."""
    role, way = one
    names = "-".join(filter(None, (role, way.way, name)))
    guest = pytest.mark.guest(with_one(role, append, oas), freshness=freshness)
    return pytest.param(way, *more, id=names, marks=guest)


def each_direction(
    chosen: Sequence[Way] = WAYS, freshness: Freshness = Freshness.CLEAN
) -> list[ParameterSet]:
    """Return the parameters `way` and `direction`, for each direction that each of these ways
    can."""
    return [
        parameters(one, direction, name=direction.value, freshness=freshness)
        for one in chosen
        for direction in directions(one[1])
    ]


def directions(way: type[FaultSource]) -> list[Direction]:
    """Return the directions in which a way performs DMA."""
    return [direction for direction in Direction if direction.ability in way.can]


def smallest(source: FaultSource, iova: int, direction: Direction) -> Dma:
    """Return the DMA of one access at a page's IOVA, or of as much of it as the source can make at
    once."""
    return Dma(iova, min(source.grain, source.longest), direction)


def possible(source: FaultSource, dma: Dma) -> bool:
    """Return whether a source can perform a DMA."""
    try:
        source.check(dma)
    except HarnessError:
        return False
    return True


def source_by(guest: Guest, way: type[FaultSource]) -> FaultSource:
    """Return the guest's one device as a source that performs DMA in this way."""
    (device,) = guest.devices
    return way(guest, device)


def in_tables(guest: Guest, way: type[FaultSource]) -> FaultSource:
    """Return the guest's one device as a source whose DMA meets the windows of GuestTables, which
    are installed. Memory that it needs itself is in the window that is mapped."""
    source = in_kernels_domain(guest, way, WINDOW_OFFSET)
    GuestTables(guest, guest.event_queue(), source.vsid).install_windows()
    return source


def in_kernels_domain(guest: Guest, way: type[FaultSource], offset: int = 0) -> FaultSource:
    """Return the guest's one device as FaultSource.in_kernels_domain does."""
    return source_by(guest, way).in_kernels_domain(offset)
