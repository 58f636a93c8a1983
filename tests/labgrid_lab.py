"""A real labgrid on loopback for tests: its coordinator and exporters."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.lab.claimant import Claimant
from harness.lab.coordinator import Coordinator
from harness.waiting import wait_for

#: labgrid's programs are where Python is.
BIN = Path(sys.executable).parent


@dataclass
class Labgrid:
    """A coordinator that can be restarted, and exporters that can end. All are processes of the
    test's, and end with it."""

    folder: Path
    port: int
    #: The processes by their names; the coordinator's is `coordinator`.
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the coordinator; it keeps its places in the folder."""
        self._start("coordinator", "labgrid-coordinator", "-l", self.address)
        self._until("coordinator", "listening on")

    def export(self, name: str, groups: Mapping[str, Any]) -> None:
        """Start an exporter of these groups of resources."""
        config = self.folder / f"{name}.yaml"
        config.write_text(json.dumps(groups))
        where = ("-c", self.address, "-n", name, "--hostname", "127.0.0.1")
        self._start(name, "labgrid-exporter", *where, str(config))
        self._until(name, "connected to coordinator", "resource_updates")

    @contextlib.contextmanager
    def seen_by(self, user: str) -> Iterator[Coordinator]:
        """Yield a connection to the coordinator in the name of HOST/USER."""
        with Coordinator.connected(self.address, Claimant.parse(user)) as one:
            yield one

    def add(self, place: str, exporter: str = "lab-a", **tags: str) -> None:
        """Make a place of the resources of an exporter's group of the same name."""
        with self.seen_by("tests/owner") as one:
            pb = one._labgrid.pb
            one._call("AddPlace", pb.AddPlaceRequest(name=place))
            match = pb.AddPlaceMatchRequest(placename=place, pattern=f"{exporter}/{place}/*")
            one._call("AddPlaceMatch", match)
            one._call("SetPlaceTags", pb.SetPlaceTagsRequest(placename=place, tags=tags))

    def acquire(self, place: str, user: str) -> None:
        """Have HOST/USER acquire a place."""
        with self.seen_by(user) as one:
            one.acquire(place)

    def release(self, place: str) -> None:
        """Release a place, whoever has it."""
        with self.seen_by("tests/owner") as one:
            holder = one.places()[place].claimant
            assert holder
            one.release(place, holder)

    def who(self) -> dict[str, str]:
        """Return who has which place, HOST/USER, by the places' names."""
        with self.seen_by("tests/owner") as one:
            return {
                place.name: place.claimant.name for place in one.places().values() if place.claimant
            }

    def waiting(self) -> list[str]:
        """Return who has a reservation, HOST/USER."""
        with self.seen_by("tests/owner") as one:
            return [reservation.claimant.name for reservation in one.reservations()]

    def end(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a process, and wait for its end."""
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(20)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self, name: str, program: str, *arguments: str) -> None:
        folder = self.folder / "coordinator"
        folder.mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [BIN / program, *arguments],
                cwd=folder if name == "coordinator" else self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def _until(self, name: str, *words: str) -> None:
        def said() -> bool:
            ended = self.processes[name].poll() is not None
            return ended or any(word in self.log(name) for word in words)

        wait_for(f"labgrid's {name}", said, deadline=60, last_seen=lambda: self.log(name))
        assert self.processes[name].poll() is None, self.log(name)


def service(port: int | None = None, username: str = "root") -> dict[str, object]:
    """Return a service of this machine, as an exporter's file has it."""
    there: dict[str, object] = {"cls": "NetworkService", "address": "127.0.0.1"}
    there["username"] = username
    return there if port is None else {**there, "port": port}


@contextlib.contextmanager
def labgrid(folder: Path) -> Iterator[Labgrid]:
    """Yield a labgrid whose coordinator listens on a free port, without places."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        lab = Labgrid(folder, free.getsockname()[1])
    try:
        lab.start()
        yield lab
    finally:
        for process in lab.processes.values():
            process.kill()
        for process in lab.processes.values():
            process.wait()
