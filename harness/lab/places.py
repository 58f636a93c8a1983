"""Places of labgrid for a run: stand in line for them, hold them while it lasts, give them back.

A run waits for its places before it begins, and never holds one while it waits for another. The
coordinator hands places out; what may run on a host is still decided by the lock on it
(harness/lab/reservation.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from harness.errors import LabError
from harness.host.session import ReservedError
from harness.lab.coordinator import Coordinator, CoordinatorError, Place, Reservation
from harness.lab.inventory import COORDINATOR_PORT, HostEntry, Inventory
from harness.lab.placed import with_place
from harness.lab.reservation import WAIT_SECONDS, waited
from harness.progress import Progress
from harness.waiting import wait_for

#: How often a place is asked for, in seconds.
ASK_SECONDS = 1.0
#: How long an exporter may be gone while a run has its place: systemd starts it again.
EXPORTER_SECONDS = 60.0
#: So many holders are named to those who wait.
_NAMED = 4
_ORDINALS = {1: "first", 2: "second", 3: "third"}


class PlaceLostError(LabError):
    """The run's places are not its own any more, or not known to be."""


def address(lab: Inventory) -> str:
    """Return where the coordinator of a lab is, HOST:PORT."""
    assert lab.coordinator
    _, colon, port = lab.coordinator.rpartition(":")
    has_port = colon and port.isdigit()
    return lab.coordinator if has_port else f"{lab.coordinator}:{COORDINATOR_PORT}"


@dataclass
class HeldPlaces:
    """The places that a run has. `lab` is its inventory, in which they have become hosts; a host
    for which there was no place is not in it."""

    coordinator: Coordinator
    lab: Inventory
    #: The names of the places, by those of the hosts.
    places: dict[str, str]
    _exporter_gone: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raise PlaceLostError if a place is not the run's any more: the coordinator was lost or
        restarted, somebody took the place away, or its exporter is gone for long."""
        try:
            now = self.coordinator.places(*self.places.values())
        except CoordinatorError as problem:
            raise PlaceLostError(problem.message, fix=problem.fix) from None
        for name in self.places.values():
            self._check(name, now.get(name))

    def _check(self, name: str, place: Place | None) -> None:
        if place is None or place.claimant != self.coordinator.me:
            by = place.claimant if place else None
            raise PlaceLostError(
                f"place {name} was taken from this run: {f'{by} has it' if by else 'it is free'}",
                fix="ask the lab's owner why; run the tests that were not run again",
            )
        if not place.missing:
            self._exporter_gone.pop(name, None)
            return
        since = self._exporter_gone.setdefault(name, time.monotonic())
        if time.monotonic() - since >= EXPORTER_SECONDS:
            raise PlaceLostError(_gone(place), fix=_START_EXPORTER)


@contextmanager
def held(
    lab: Inventory,
    hosts: Sequence[HostEntry],
    progress: Progress,
    *,
    most: int = 1,
    wait: float = WAIT_SECONDS,
) -> Iterator[HeldPlaces]:
    """Hold a place for these hosts of a lab while the body runs; wait at most `wait` seconds.

    Of hosts that ask for the same tags, one gets its place in any case, and others, up to `most`
    places in all, if one is free at once. What a run of this machine that was killed has kept is
    given back first. Raises ReservedError when the wait is over, CoordinatorError when the
    coordinator does not do as asked, LabError for a place that cannot be used. Then nothing is
    held.
    """
    with Coordinator.connected(address(lab)) as coordinator:
        reclaim(coordinator, progress)
        line = _Queue(coordinator, progress, wait)
        names: dict[str, str] = {}
        try:
            needed, others = _needed(hosts)
            line.take(needed, names)
            for host in others:
                if len(names) < most:
                    line.take_if_free(host, names)
            found = coordinator.places(*names.values())
            entries = [
                with_place(lab, host, found[names[host.name]]) if host.name in names else host
                for host in lab.hosts
                if host.place is None or host.name in names
            ]
            for host in hosts:
                if host.name in names:
                    progress.note(f"host {host.name} is place {names[host.name]}")
            lab = lab.model_copy(
                update={"hosts": tuple(entries), "coordinator": None, "places": {}}
            )
            yield HeldPlaces(coordinator, lab, names)
        finally:
            _give_back(coordinator, list(names.values()), progress)


@contextmanager
def placed(
    lab: Inventory, host: HostEntry, progress: Progress, *, wait: float = WAIT_SECONDS
) -> Iterator[HostEntry]:
    """Yield the entry of one host of a lab, complete; hold its place meanwhile if it asks for one.
    Raises what `held` does."""
    if host.place is None:
        yield host
        return
    with held(lab, [host], progress, wait=wait) as has:
        yield has.lab.host(host.name)


def looked_up(lab: Inventory, host: HostEntry, *, held_too: bool) -> HostEntry:
    """Return the entry of a host, complete, whose tags only one place has; that place is not held
    for it. Raises LabError if several have them, or none, or if somebody has the place and it is
    not to be `held_too`."""
    assert host.place
    with Coordinator.connected(address(lab)) as coordinator:
        found = coordinator.fitting(host.place)
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise LabError(
            f"host {host.name} may be any of the places with {text(host.place)}: {names}",
            fix="have a host in the inventory with `place: {name: PLACE}`, and name that",
        )
    (place,) = found
    if place.claimant and not held_too:
        raise ReservedError(f"place {place.name} is in use by {holder(place)}")
    return with_place(lab, host, place)


def reclaim(coordinator: Coordinator, progress: Progress) -> None:
    """Give back what runs of this machine have kept that were killed: their places, and what they
    stood in line for. Nobody else's is touched."""
    for place in coordinator.places().values():
        if place.claimant and place.claimant.ended():
            coordinator.release(place.name, place.claimant)
            progress.note(f"place {place.name} is given back: {place.claimant} was killed")
    for one in coordinator.reservations():
        if one.claimant.ended():
            coordinator.cancel(one.token)


def fitting(coordinator: Coordinator, wish: Mapping[str, str]) -> tuple[list[Place], int]:
    """Return the places that have these tags, and how many reservations wait for one of them."""
    places = coordinator.fitting(wish)
    waiting = [one for one in coordinator.reservations() if _waits_for(one, places)]
    return places, len(waiting)


def holder(place: Place) -> str:
    """Return who has a place since when, in words."""
    if place.claimant is None:
        return "nobody"
    since = datetime.fromtimestamp(place.since, UTC)
    return f"{place.claimant} since {since:%Y-%m-%d %H:%M} UTC"


def text(wish: Mapping[str, str]) -> str:
    """Return a wish as people write it."""
    return ", ".join(f"{key}={value}" for key, value in wish.items())


def _needed(hosts: Sequence[HostEntry]) -> tuple[list[HostEntry], list[HostEntry]]:
    """Return the first host of each wish, and the others."""
    needed: list[HostEntry] = []
    for host in hosts:
        if all(host.place != one.place for one in needed):
            needed.append(host)
    return needed, [host for host in hosts if host not in needed]


def _waits_for(one: Reservation, places: Sequence[Place]) -> bool:
    return one.place is None and not one.over and any(place.fits(one.wish) for place in places)


def _gone(place: Place) -> str:
    return (
        f"place {place.name} lacks {', '.join(place.missing)}: its exporter is not connected to "
        "the coordinator"
    )


_START_EXPORTER = (
    "start labgrid-exporter on its machine; a place that is to be left alone needs no tags"
)


def _give_back(coordinator: Coordinator, names: Sequence[str], progress: Progress) -> None:
    """Release places. If the connection was lost, the coordinator may be there again, and may still
    know them as ours."""
    try:
        for name in names:
            coordinator.release(name, coordinator.me)
    except CoordinatorError:
        try:
            with Coordinator.connected(coordinator.address, coordinator.me) as again:
                for name in names:
                    again.release(name, again.me)
        except LabError as problem:
            progress.note(
                f"places {', '.join(names)} may not be given back: {problem.message}; the next run "
                "on this machine does it, or "
                f"`labgrid-client -p PLACE release-from {coordinator.me.name}`"
            )


@dataclass
class _Queue:
    """This run's place in the line."""

    coordinator: Coordinator
    progress: Progress
    wait: float
    #: What those who wait were told.
    told: set[str] = field(default_factory=set)

    def take(self, hosts: Sequence[HostEntry], names: dict[str, str]) -> None:
        """Acquire a place for each of these hosts, and note its name in `names`. While one is
        waited for, the others' are not held: two runs that wait for each other's would for ever."""
        self._check_enough(hosts)
        end = time.monotonic() + self.wait
        first, rest = 0, range(len(hosts))
        had: dict[int, Reservation] = {}
        tried: set[int] = set()
        try:
            while hosts:
                had[first] = self._given(hosts[first], had.pop(first, None), end)
                for at in rest:
                    if at not in had:
                        had[at] = self._reserve(hosts[at])
                waiting = [at for at in rest if not self._usable(had[at])]
                if not waiting:
                    break
                first = waiting[0]
                busy = self._busy(hosts[first], had[first])
                for at in rest:
                    if at != first:
                        self.coordinator.cancel(had.pop(at).token)
                if first in tried:
                    self._rest(busy, end)
                tried.add(first)
            for at in rest:
                self._acquire(hosts[at], had.pop(at), names)
        finally:
            for one in had.values():
                self._cancel(one)

    def _rest(self, busy: ReservedError, end: float) -> None:
        """Wait a moment. Where one free place would do for either of two hosts, each may be given
        it at once when the other gives it up, in turns, until one of another kind is free. Raises
        `busy` when the time is over."""
        if busy.told not in self.told:
            self.progress.note(busy.told)
            self.told.add(busy.told)
        rested = time.monotonic() + ASK_SECONDS
        if rested > end:
            busy.message += f"; waited {self.wait:.0f} s for it"
            raise busy
        wait_for(busy.message, lambda: time.monotonic() >= rested, deadline=2 * ASK_SECONDS)

    def take_if_free(self, host: HostEntry, names: dict[str, str]) -> None:
        """Acquire a place for a host if there is one now; else say so."""
        one = self._reserve(host)
        usable = False
        try:
            usable = self._usable(one)
        finally:
            if not usable:
                self._cancel(one)
        if usable:
            self._acquire(host, one, names)
        else:
            wish = text(host.place or {})
            self.progress.note(f"host {host.name} is not used: no other place with {wish} is free")

    def _given(self, host: HostEntry, one: Reservation | None, end: float) -> Reservation:
        """Return a reservation that was given a place that can be used. Raises ReservedError."""
        aside: list[Reservation] = []
        one = one or self._reserve(host)
        try:
            while True:
                one = self._waited(host, one, end)
                if self._usable(one):
                    return one
                # As long as we have it, nobody else is given this place. Another one may do.
                self._check_any_usable(host)
                aside.append(one)
                one = self._reserve(host)
        except BaseException:
            aside.append(one)
            raise
        finally:
            for broken in aside:
                self._cancel(broken)

    def _reserve(self, host: HostEntry) -> Reservation:
        assert host.place
        return self.coordinator.reserve(host.place)

    def _waited(self, host: HostEntry, one: Reservation, end: float) -> Reservation:
        """Return the reservation once it was given a place."""
        wish = one.wish

        def ask() -> None:
            nonlocal one
            one = self.coordinator.poll(one.token)
            if one.over:
                # We were away for a minute: another begins at the end of the line.
                one = self._reserve(host)
            if one.place is None:
                raise self._busy(host, one)

        if one.place is None:
            if not self.coordinator.fitting(wish):
                raise LabError(
                    f"host {host.name}: no place of the coordinator at {self.coordinator.address} "
                    f"has the tags {text(wish)}",
                    fix="correct `place` in the inventory, or give a place these tags: "
                    f"`labgrid-client -p PLACE set-tags {text(wish).replace(', ', ' ')}`",
                )
            waited(ask, self.progress, max(0.0, end - time.monotonic()), ASK_SECONDS)
        return one

    def _busy(self, host: HostEntry, one: Reservation) -> ReservedError:
        """Return the error that says who has what, since when, and where in line we are."""
        places = self.coordinator.fitting(one.wish)
        reservations = self.coordinator.reservations()
        line = [other for other in reservations if _waits_for(other, places)]
        at = 1 + sum(other.rank < one.rank for other in line)
        reserved = {other.place: other.claimant for other in reservations}
        said = [
            f"{place.name}: {holder(place)}"
            if place.claimant
            else f"{place.name}: {reserved.get(place.name, 'nobody')}, in a moment"
            for place in places
        ]
        if len(said) > _NAMED:
            said = [*said[:_NAMED], f"{len(said) - _NAMED} more"]
        message = (
            f"host {host.name}: no place with {text(one.wish)} is free; this run is "
            f"{_ORDINALS.get(at, f'{at}th')} in line; {'; '.join(said)}"
        )
        return ReservedError(message, by=message)

    def _usable(self, one: Reservation) -> bool:
        if one.place is None:
            return False
        place = self.coordinator.places(one.place)[one.place]
        if place.missing:
            self.progress.note(f"{_gone(place)}; it is not used")
        return not place.missing

    def _check_enough(self, hosts: Sequence[HostEntry]) -> None:
        """Raise LabError if hosts cannot have a place each, whoever has the places. Of one for
        which there is none at all, `_waited` tells."""
        fits = [[one.name for one in self.coordinator.fitting(host.place or {})] for host in hosts]
        taken: dict[str, int] = {}

        def seat(at: int, tried: set[str]) -> bool:
            """Find a place for a host; another host may be moved to another place for it."""
            for name in fits[at]:
                if name not in tried:
                    tried.add(name)
                    if name not in taken or seat(taken[name], tried):
                        taken[name] = at
                        return True
            return False

        if all(fits) and not all(seat(at, set()) for at in range(len(hosts))):
            *others, last = (host.name for host in hosts)
            raise LabError(
                f"hosts {', '.join(others)} and {last} need a place each, and there are not as "
                f"many: {', '.join(sorted({name for names in fits for name in names}))}",
                fix="correct `place` in the inventory, give more places these tags, or name one of "
                "the hosts with --host",
            )

    def _check_any_usable(self, host: HostEntry) -> None:
        """Raise LabError if no place that a host may have can be used, whoever has it."""
        places = self.coordinator.fitting(host.place or {})
        if all(one.missing for one in places):
            raise LabError(
                f"host {host.name}: {'; '.join(map(_gone, places))}", fix=_START_EXPORTER
            )

    def _acquire(self, host: HostEntry, one: Reservation, names: dict[str, str]) -> None:
        assert one.place
        # Noted before: whether it was acquired is not known if the link is lost meanwhile.
        names[host.name] = one.place
        try:
            self.coordinator.acquire(one.place)
        finally:
            # Else the coordinator keeps the place for us for up to 15 s after its release.
            self._cancel(one)

    def _cancel(self, one: Reservation) -> None:
        """Cancel a reservation. One of a coordinator that was lost ends within a minute."""
        with contextlib.suppress(CoordinatorError):
            self.coordinator.cancel(one.token)
