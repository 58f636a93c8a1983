"""The virtual host that runs under test use: brought up once, and brought back when it died."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness.artifacts.store import Store
from harness.host.connection import Connection
from harness.host.host import HostDescription
from harness.host.session import Session
from harness.lab.inventory import HostEntry
from harness.lab.provide import describe_virtual, machine
from harness.progress import Progress
from harness.virtual.machine import VirtualMachine
from tests.lab.chaos.relay import Relay
from tests.lab.plain import write_inventory

ON_HOST = Path(__file__).with_name("on_host.py")
_AS_NEW = "as-new"


class Stage:
    """A virtual host that is up, and the link to it, which can break."""

    def __init__(self, entry: HostEntry, store: Store) -> None:
        self.entry = entry
        self.store = store
        found = machine(entry, store, Progress(enabled=False))
        assert found
        # A plain host is not saved, and its kernel runs at EL2, from where none comes back.
        found.snapshots = True
        self.vm: VirtualMachine = found
        self.relay: Relay
        self._connection: Connection | None = None

    @classmethod
    @contextmanager
    def up(cls, entry: HostEntry, store: Store) -> Iterator[Stage]:
        """Yield a stage whose host is up; the host is taken down at the end."""
        stage = cls(entry, store)
        with contextlib.ExitStack() as stack:
            stack.callback(stage.vm.down)
            stage.relay = stack.enter_context(Relay.to(stage.port))
            stack.callback(stage.disconnect)
            stage.renew()
            yield stage

    def renew(self) -> None:
        """Bring the host back as it was at first: from its snapshot, if it runs."""
        self.relay.mend()
        self.relay.reset()
        if self.vm.running() and self.vm.has(_AS_NEW):
            self.disconnect()
            self.vm.restore(_AS_NEW)
            return
        self.bring_back()
        self.disconnect()
        self.vm.save(_AS_NEW, "")

    def bring_back(self) -> None:
        """Boot the host if it is down, and have a session there begin and end, which leaves the
        lock's file for the next one."""
        if not self.vm.running():
            self.disconnect()
            self.vm.up()
            Session.start(self.connection).end()

    def take_down(self) -> None:
        """Take the host down, for a run that boots it itself."""
        self.disconnect()
        self.vm.down()

    def port(self) -> int:
        """Return the port of the host's sshd; it changes from boot to boot."""
        running = self.vm.running()
        return running.port if running else 1

    @property
    def described(self) -> HostDescription:
        running = self.vm.running()
        assert running
        return describe_virtual(self.entry, self.vm, running)

    @property
    def connection(self) -> Connection:
        """Return a link to the host that is not the relay's."""
        if self._connection is None:
            self._connection = Connection(self.described.target)
        return self._connection

    def disconnect(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def do(self, command: str) -> str:
        """Run a command on the host, and return what it prints."""
        return self.connection.run(command).text

    def census(self) -> list[str]:
        """Return all that a session could leave behind on the host, and what is there now."""
        found = self.connection.run("python3 -I -", stdin=ON_HOST.read_bytes())
        return found.text.splitlines()

    def inventory(self, folder: Path) -> Path:
        """Write an inventory that has the host by the relay's address, and no more, into `folder`,
        and return its path."""
        described = self.described
        key = described.target.known_hosts.read_text().split(maxsplit=1)[1]
        known_hosts = folder / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{self.relay.port} {key}")
        target = replace(described.target, port=self.relay.port, known_hosts=known_hosts)
        return write_inventory(replace(described, target=target), folder)
