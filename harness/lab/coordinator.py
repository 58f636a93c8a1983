"""A client of labgrid's coordinator, which knows the places of a lab, and who has them.

It speaks labgrid's own protocol (labgrid/remote/proto/labgrid-coordinator.proto) with what labgrid
generated from that. A thread receives what changes.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from types import SimpleNamespace
from typing import Any

from harness.errors import LabError
from harness.lab.claimant import Claimant
from harness.waiting import wait_for

#: How long the coordinator may take to accept us, and to answer. While somebody acquires a place it
#: waits for that place's exporters, 10 s each at most, and answers nobody else.
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
#: How a connection that is silent is found out, in ms; as labgrid's own client does it.
_KEEPALIVE = {
    "grpc.keepalive_time_ms": 7500,
    "grpc.keepalive_timeout_ms": 10000,
    "grpc.http2.ping_timeout_ms": 10000,
    "grpc.http2.max_pings_without_data": 0,
}


class CoordinatorError(LabError):
    """The coordinator cannot be reached, was lost, or refuses what it was asked."""


@dataclass(frozen=True)
class Resource:
    """Something that a place has: `name` as the place calls it, `kind` is labgrid's class."""

    name: str
    kind: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """A place as of now. `claimant` has it since `since`, in seconds since 1970 by the
    coordinator's clock; None if nobody has. `missing` are its matches for which there is no
    resource, because their exporter is gone."""

    name: str
    tags: Mapping[str, str]
    claimant: Claimant | None
    since: float
    resources: tuple[Resource, ...]
    missing: tuple[str, ...]

    def fits(self, wish: Mapping[str, str]) -> bool:
        """Return whether the place has these tags; its name is one."""
        tags = {**self.tags, "name": self.name}
        return all(tags.get(key) == value for key, value in wish.items())


@dataclass(frozen=True)
class Reservation:
    """A request for a place with the tags `wish`. `place` is the one that it was given, None while
    it waits; `over` says that it is neither."""

    token: str
    claimant: Claimant
    wish: Mapping[str, str]
    place: str | None
    over: bool
    #: Smaller is earlier in line.
    rank: tuple[float, float]


@dataclass
class Coordinator:
    """A connection to a coordinator, in the name of `me`. Every call raises CoordinatorError when
    it is lost, or does not do as asked."""

    address: str
    me: Claimant
    _labgrid: SimpleNamespace
    _channel: Any = None
    _stub: Any = None
    _stream: Any = None
    _out: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _places: dict[str, Any] = field(default_factory=dict)
    _resources: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    _synced: int = 0
    _asked: int = 0
    #: Why the connection is not usable any more; empty while it is.
    lost: str = ""

    @classmethod
    @contextmanager
    def connected(cls, address: str, me: Claimant | None = None) -> Iterator[Coordinator]:
        """Yield a connection to the coordinator at HOST:PORT. Raises CoordinatorError, and LabError
        where labgrid is not installed."""
        one = cls(address, me or Claimant.me(), labgrid())
        one._open()
        try:
            yield one
        finally:
            one._close()

    # -- what it knows ---------------------------------------------------------------------

    def places(self, *names: str) -> dict[str, Place]:
        """Return the places of these names that there are, by name, or all, as the coordinator has
        them now."""
        self._sync()
        with self._lock:
            return {
                name: self._place(one)
                for name, one in sorted(self._places.items())
                if not names or name in names
            }

    def fitting(self, wish: Mapping[str, str]) -> list[Place]:
        """Return the places that have these tags, as the coordinator has them now."""
        self._sync()
        with self._lock:
            return [
                self._place(one)
                for name, one in sorted(self._places.items())
                if wish.items() <= {**one.tags, "name": name}.items()
            ]

    def reservations(self) -> list[Reservation]:
        """Return all reservations, the earliest in line first."""
        found = self._call("GetReservations", self._labgrid.pb.GetReservationsRequest())
        return sorted(map(self._reservation, found.reservations), key=lambda one: one.rank)

    # -- what it does ----------------------------------------------------------------------

    def reserve(self, wish: Mapping[str, str]) -> Reservation:
        """Stand in line for a place with these tags. One that is free is given at once. Who does
        not call `poll` for a minute is out."""
        pb = self._labgrid.pb
        filters = {"main": pb.Reservation.Filter(filter=dict(wish))}
        asked = pb.CreateReservationRequest(filters=filters, prio=0.0)
        return self._reservation(self._call("CreateReservation", asked).reservation)

    def poll(self, token: str) -> Reservation:
        """Return a reservation as it is now, and stay in line."""
        asked = self._labgrid.pb.PollReservationRequest(token=token)
        return self._reservation(self._call("PollReservation", asked).reservation)

    def cancel(self, token: str) -> None:
        """Leave the line; give back a place that was given, but not acquired. One that is over is
        left alone."""
        with contextlib.suppress(_RefusedError):
            self._call("CancelReservation", self._labgrid.pb.CancelReservationRequest(token=token))

    def acquire(self, place: str) -> None:
        """Take a place that is free, or that was given to us."""
        self._call("AcquirePlace", self._labgrid.pb.AcquirePlaceRequest(placename=place))

    def release(self, place: str, claimant: Claimant) -> None:
        """Give back a place, if `claimant` has it. Nobody else's is touched."""
        asked = self._labgrid.pb.ReleasePlaceRequest(placename=place, fromuser=claimant.name)
        with contextlib.suppress(_RefusedError):
            self._call("ReleasePlace", asked)

    # -- the connection --------------------------------------------------------------------

    def _open(self) -> None:
        grpc, pb = self._labgrid.grpc, self._labgrid.pb
        # A connection of its own: the coordinator knows clients by their connections.
        options = {**_KEEPALIVE, "grpc.use_local_subchannel_pool": 1}
        self._channel = grpc.insecure_channel(self.address, options=list(options.items()))
        try:
            grpc.channel_ready_future(self._channel).result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            self._channel.close()
            raise CoordinatorError(
                f"labgrid's coordinator at {self.address} does not answer within "
                f"{CONNECT_SECONDS:.0f} s",
                fix="start labgrid-coordinator there, or correct `coordinator` in the inventory",
            ) from None
        self._stub = self._labgrid.stubs.CoordinatorStub(self._channel)
        begin = pb.ClientInMessage()
        begin.startup.version = metadata.version("labgrid")
        begin.startup.name = self.me.name
        self._out.put(begin)
        # The coordinator knows one subscription a message: of a second one it reads the last.
        places, resources = pb.ClientInMessage(), pb.ClientInMessage()
        places.subscribe.all_places = True
        resources.subscribe.all_resources = True
        self._out.put(places)
        self._out.put(resources)
        self._stream = self._stub.ClientStream(iter(self._out.get, None))
        threading.Thread(
            target=self._receive, name=f"coordinator {self.address}", daemon=True
        ).start()
        try:
            self._sync()
        except CoordinatorError:
            self._close()
            raise

    def _close(self) -> None:
        self._out.put(None)
        self._stream.cancel()
        self._channel.close()

    def _receive(self) -> None:
        why = "it ended"
        try:
            for message in self._stream:
                with self._lock:
                    for update in message.updates:
                        self._update(update)
                    if message.HasField("sync"):
                        self._synced = message.sync.id
        except self._labgrid.grpc.RpcError as problem:
            why = problem.details() or str(problem.code())
        finally:
            self.lost = why

    def _update(self, update: Any) -> None:
        kind = update.WhichOneof("kind")
        one = getattr(update, kind)
        if kind == "place":
            self._places[one.name] = self._labgrid.common.Place.from_pb2(one)
        elif kind == "del_place":
            self._places.pop(one, None)
        else:
            path = one.path if kind == "resource" else one
            key = path.exporter_name, path.group_name, path.resource_name
            # labgrid tells of a resource that is gone as of one without a class.
            if kind == "resource" and one.cls:
                self._resources[key] = self._labgrid.common.ResourceEntry(
                    self._labgrid.common.ResourceEntry.data_from_pb2(one)
                )
            else:
                self._resources.pop(key, None)

    def _sync(self) -> None:
        """Wait until all is received that the coordinator has sent by now."""
        with self._lock:
            self._asked += 1
            asked = self._asked
        message = self._labgrid.pb.ClientInMessage()
        message.sync.id = asked
        self._out.put(message)
        wait_for(
            f"labgrid's coordinator at {self.address} to answer",
            lambda: self.lost or self._synced >= asked,
            deadline=ANSWER_SECONDS,
            interval=0.01,
            error=CoordinatorError,
        )
        if self.lost:
            raise self._gone()

    def _call(self, method: str, request: Any) -> Any:
        if self.lost:
            raise self._gone()
        grpc = self._labgrid.grpc
        try:
            return getattr(self._stub, method)(request, timeout=ANSWER_SECONDS)
        except grpc.RpcError as problem:
            code, why = problem.code(), problem.details()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                self.lost = self.lost or why
                raise self._gone() from None
            what = f"labgrid's coordinator at {self.address} does not do {method}: {why}"
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise CoordinatorError(f"{what} ({ANSWER_SECONDS:.0f} s)") from None
            raise _RefusedError(what) from None

    def _gone(self) -> CoordinatorError:
        return CoordinatorError(
            f"labgrid's coordinator at {self.address} was lost: {self.lost}",
            fix="see that it runs, and that the network is there; a coordinator that was restarted "
            "has forgotten who had which place",
        )

    # -- from labgrid's ---------------------------------------------------------------------

    def _place(self, one: Any) -> Place:
        found, matched = [], set()
        for (exporter, group, name), resource in sorted(self._resources.items()):
            match = one.getmatch((exporter, group, resource.cls, name))
            if match is not None and resource.avail:
                matched.add(str(match))
                found.append(Resource(match.rename or name, resource.cls, resource.args))
        missing = [repr(match) for match in one.matches if str(match) not in matched]
        claimant = Claimant.parse(one.acquired) if one.acquired else None
        return Place(one.name, one.tags, claimant, one.changed, tuple(found), tuple(missing))

    def _reservation(self, one: Any) -> Reservation:
        found = self._labgrid.common.Reservation.from_pb2(one)
        places = found.allocations.get("main", [])
        return Reservation(
            found.token,
            Claimant.parse(found.owner),
            found.filters.get("main", {}),
            places[0] if places else None,
            found.state.name in ("expired", "invalid"),
            (-found.prio, found.created),
        )


class _RefusedError(CoordinatorError):
    """The coordinator is there, and refuses."""


def labgrid() -> SimpleNamespace:
    """Return the parts of labgrid that are used here, which take time to import. Raises LabError if
    it is not installed."""
    try:
        import grpc
        from labgrid.remote import common
        from labgrid.remote.generated import labgrid_coordinator_pb2 as pb
        from labgrid.remote.generated import labgrid_coordinator_pb2_grpc as stubs
    except ImportError as problem:
        raise LabError(
            f"a lab with a coordinator needs the Python package labgrid ({problem})",
            fix="pip install 'grace-smmu-hil[labgrid]'",
        ) from None
    return SimpleNamespace(grpc=grpc, common=common, pb=pb, stubs=stubs)
