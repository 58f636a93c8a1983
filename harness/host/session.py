"""Our presence on a host: a folder, an agent that owns our processes there, and its lease.

The lease is renewed by a thread. If the link drops, the thread connects again; if we are killed,
the agent ends everything when the lease runs out (see agent.py). A session found inside a
restored snapshot is taken over by `Session.adopt`.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import threading
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from harness.errors import HarnessError, LabError
from harness.host.connection import CommandFailedError, Connection

ROOT = "/run/hil"
LEASE_SECONDS = 30.0
#: From a QEMU that is killed or closes its sockets to its end: it has the guest's memory to unpin.
ENDING_SECONDS = 20.0


class ReservedError(LabError):
    """Another session has the host."""

    def __init__(self, host: str, other: str) -> None:
        super().__init__(
            f"host {host} is reserved by session {other}",
            fix="wait for it to end; a killed one's lease runs out by itself; a guest that was "
            f"kept ends with `kill $(cat {ROOT}/{other}/agent.pid)` on the host",
        )


class AgentRefusedError(HarnessError):
    """The agent answered a request with an error."""


class Session:
    """A live session. Everything it started ends with it."""

    def __init__(self, connection: Connection, name: str, lease: float) -> None:
        self.connection = connection
        self.name = name
        self.folder = f"{ROOT}/{name}"
        self.lease = lease
        self._over = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=f"lease {name}", daemon=True)

    # -- life ------------------------------------------------------------------------------

    @classmethod
    def start(cls, connection: Connection, *, lease: float = LEASE_SECONDS) -> Session:
        """Begin a session; its owner calls `end` (or `abandon`).

        Raises ReservedError when another session has the host, LabError when the host has no
        usable Python.
        """
        session = cls(connection, secrets.token_hex(4), lease)
        source = resources.files("harness.host").joinpath("agent.py").read_bytes()
        agent = f"{session.folder}/agent.py"
        try:
            connection.run(["mkdir", "-p", "-m", "700", session.folder])
            connection.write_file(agent, source)
            connection.run(["python3", "-I", agent, session.folder, str(lease)])
        except CommandFailedError as failed:
            connection.run(["rm", "-rf", session.folder])
            said = failed.completed.stderr.decode(errors="replace") if failed.completed else ""
            if "RESERVED" in said:
                raise ReservedError(connection.target.known_as, said.split()[-1]) from None
            raise LabError(
                f"the agent does not start on {connection.target.known_as}: {failed.message}",
                fix="install Python 3.9 or newer on the host, and let us write to /run",
            ) from failed
        session._renewer.start()
        return session

    @classmethod
    def adopt(cls, connection: Connection, name: str, lease: float) -> Session:
        """Take over the session `name` that some harness left running on the host."""
        session = cls(connection, name, lease)
        session.processes()
        session._renewer.start()
        return session

    def abandon(self) -> None:
        """Let go without ending anything: the host is about to go back to a snapshot, or a
        person takes over."""
        self._over.set()
        self._renewer.join()

    def end(self) -> None:
        """End all processes and undo all that was registered; harmless when already over.

        Raises LabError when an undo failed: something of ours is left on the host.
        """
        self._over.set()
        try:
            undone = self._ask({"do": "end"}, 60)["undone"]
        except LabError:
            return  # the agent is gone, and it does not go without having done the same
        finally:
            self._renewer.join()
        self._complain(undone)

    def _complain(self, undone: Mapping[str, tuple[int, str]]) -> None:
        failed = {name: said for name, (status, said) in undone.items() if status != 0}
        if failed:
            raise LabError(f"could not be undone on {self.connection.target.known_as}: {failed}")

    def _renew(self) -> None:
        while not self._over.wait(self.lease / 4):
            # A lost link is tried again at the next turn, within the lease.
            with contextlib.suppress(LabError):
                self.processes()

    # -- requests --------------------------------------------------------------------------

    def _ask(self, request: Mapping[str, object], seconds: float = 15.0) -> dict[str, Any]:
        answer = self.connection.ask(f"{self.folder}/agent.sock", request, timeout=seconds)
        if "error" in answer:
            raise AgentRefusedError(f"agent, {request['do']}: {answer['error']}")
        return answer

    def processes(self) -> dict[str, int | None]:
        """Renew the lease; each process's exit status, or None while it runs."""
        found: dict[str, int | None] = self._ask({"do": "renew"})["processes"]
        return found

    def spawn(
        self, name: str, argv: Sequence[str], *, log: str, listen: Mapping[str, str] | None = None
    ) -> int:
        """Start a process under the lease; its pid. `listen` maps labels to Unix socket paths
        that exist when this returns; "{label}" in argv becomes the descriptor's number."""
        request = {"do": "spawn", "name": name, "argv": list(argv), "log": log}
        pid: int = self._ask({**request, "listen": dict(listen or {})})["pid"]
        return pid

    def pid(self, name: str) -> int:
        """A process's number on the host."""
        pid: int = self._ask({"do": "pid", "name": name})["pid"]
        return pid

    def signal(self, name: str, number: int) -> None:
        self._ask({"do": "signal", "name": name, "number": number})

    def wait(self, name: str, seconds: float) -> int | None:
        """The exit status once the process ends, None if it still runs after `seconds`."""
        request = {"do": "wait", "name": name, "seconds": seconds}
        status: int | None = self._ask(request, seconds + 15)["status"]
        return status

    def kill(self, name: str) -> None:
        """End a process at once; it is gone when this returns. Raises LabError when it stays."""
        self.signal(name, signal.SIGKILL)
        if self.wait(name, ENDING_SECONDS) is None:
            raise LabError(
                f"process {name} on {self.connection.target.known_as} does not die",
                fix="look at the host's kernel log: it is stuck in the kernel",
            )

    def on_end(self, name: str, command: str) -> None:
        """Have the agent run a shell command when the session ends, in whatever way."""
        self._ask({"do": "undo", "name": name, "command": command})

    def undo_now(self, names: Sequence[str]) -> None:
        """Run registered commands now instead, in this order; names not registered are skipped.
        Raises LabError when one fails."""
        self._complain(self._ask({"do": "undo now", "names": list(names)}, 60)["undone"])

    def set_lease(self, seconds: float) -> None:
        """How long everything survives without us from now on."""
        self.lease = seconds
        self._ask({"do": "lease", "seconds": seconds})
