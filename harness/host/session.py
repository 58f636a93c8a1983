"""A session on a host: a folder, an agent that owns the session's processes, and its lease.

A thread renews the lease. If the link drops, the thread connects again; if this process is killed,
the agent ends everything when the lease runs out (see agent.py). `Session.adopt` takes over the
session that is inside a restored snapshot.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import threading
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from harness import kernel_log
from harness.errors import HarnessError, LabError
from harness.host.connection import CommandFailedError, Connection

ROOT = "/run/hil"
#: Where programs are put if the session's folder does not allow to run them: Debian mounts /run
#: noexec. In the order of preference: what a host empties by itself comes first.
_PROGRAM_PLACES = ("/tmp", "/var/tmp", "/root")
LEASE_SECONDS = 30.0
#: Longest that a killed QEMU takes to exit: it unpins the guest's memory first.
ENDING_SECONDS = 20.0


class ReservedError(LabError):
    """Another session has reserved the host."""

    def __init__(self, host: str, other: str) -> None:
        super().__init__(
            f"host {host} is reserved by session {other}",
            fix="wait until that session ends: if its harness was killed, it ends by itself when "
            "its lease runs out; to end a session that --keep left, run "
            f"`kill $(cat {ROOT}/{other}/agent.pid)` on the host",
        )


class AgentRefusedError(HarnessError):
    """The agent answered a request with an error."""


class Session:
    """A live session. Everything that it started ends with it."""

    def __init__(self, connection: Connection, name: str, lease: float) -> None:
        self.connection = connection
        self.name = name
        self.folder = f"{ROOT}/{name}"
        self.lease = lease
        #: The processes that the harness has ended, or tried to, by name.
        self.ended: set[str] = set()
        self._programs: str | None = None
        self._kernel_seen = 0
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=f"lease {name}", daemon=True)

    # -- life ------------------------------------------------------------------------------

    @classmethod
    def start(cls, connection: Connection, *, lease: float = LEASE_SECONDS) -> Session:
        """Start a session with a lease of `lease` seconds; its owner calls `end` or `abandon`.

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
                fix="install Python 3.9 or newer on the host, and let the inventory's user write "
                "to /run",
            ) from failed
        session._renewer.start()
        try:
            session._ask({"do": "watch kernel", "pattern": kernel_log.BUG})
        except AgentRefusedError as refused:
            session.end()
            raise LabError(
                f"the kernel log of {connection.target.known_as} cannot be watched: {refused}",
                fix="log in as root, and boot a kernel with CONFIG_PRINTK: the host's kernel is "
                "under test",
            ) from refused
        return session

    @classmethod
    def adopt(cls, connection: Connection, name: str, lease: float) -> Session:
        """Take over the session `name` that runs on the host with a lease of `lease` seconds.
        Raises LabError when it does not answer."""
        session = cls(connection, name, lease)
        session.processes()
        session._renewer.start()
        session.kernel_reports()
        return session

    def abandon(self) -> None:
        """Stop renewing the lease and end nothing: the host is about to go back to a snapshot, or
        a person takes over."""
        self._ended.set()
        self._renewer.join()

    def end(self) -> None:
        """End all processes and run all registered undos. It does nothing when the session has
        ended already.

        Raises LabError when an undo failed: then the host is not as it was before.
        """
        self._ended.set()
        try:
            undone = self._ask({"do": "end"}, 60)["undone"]
        except LabError:
            return  # the agent is gone, and before it exits it ends and undoes the same
        finally:
            self._renewer.join()
        self._raise_if_failed(undone)

    def _raise_if_failed(self, undone: Mapping[str, tuple[int, str]]) -> None:
        failed = {name: said for name, (status, said) in undone.items() if status != 0}
        if failed:
            raise LabError(
                f"could not be undone on {self.connection.target.known_as}: {failed}",
                fix="undo these by hand, or reboot the host",
            )

    def _renew(self) -> None:
        while not self._ended.wait(self.lease / 4):
            # When the link is lost the next turn tries again, within the lease.
            with contextlib.suppress(LabError):
                self.processes()

    # -- requests --------------------------------------------------------------------------

    def _ask(self, request: Mapping[str, object], seconds: float = 15.0) -> dict[str, Any]:
        answer = self.connection.ask(f"{self.folder}/agent.sock", request, timeout=seconds)
        if "error" in answer:
            raise AgentRefusedError(f"agent, {request['do']}: {answer['error']}")
        return answer

    def processes(self) -> dict[str, int | None]:
        """Renew the lease, and return each process's exit status, or None while it runs."""
        found: dict[str, int | None] = self._ask({"do": "renew"})["processes"]
        return found

    def kernel_reports(self) -> list[tuple[float, str]]:
        """Return the reports of bugs in the host's kernel log since the last call, or since the
        session was started or adopted: the first line of each, with its time in seconds since the
        host's boot."""
        kept = self._ask({"do": "kernel"})["kept"]
        new, self._kernel_seen = kept[self._kernel_seen :], len(kept)
        return [(seconds, text) for seconds, text in new]

    def spawn(
        self, name: str, argv: Sequence[str], *, log: str, listen: Mapping[str, str] | None = None
    ) -> int:
        """Start a process under the lease and return its pid. Its output goes to the host's file
        `log`. `listen` maps labels to paths of Unix sockets, which exist when this returns;
        "{label}" in argv becomes the number of the listening descriptor."""
        self.ended.discard(name)
        request = {"do": "spawn", "name": name, "argv": list(argv), "log": log}
        pid: int = self._ask({**request, "listen": dict(listen or {})})["pid"]
        return pid

    def pid(self, name: str) -> int:
        """Return the process's pid on the host."""
        pid: int = self._ask({"do": "pid", "name": name})["pid"]
        return pid

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process. One that ends it is noted in `ended`."""
        if number in (signal.SIGTERM, signal.SIGKILL):
            self.ended.add(name)
        self._ask({"do": "signal", "name": name, "number": number})

    def wait(self, name: str, seconds: float) -> int | None:
        """Wait until the process ends and return its exit status; None if it still runs after
        `seconds`."""
        request = {"do": "wait", "name": name, "seconds": seconds}
        status: int | None = self._ask(request, seconds + 15)["status"]
        return status

    def kill(self, name: str) -> None:
        """Kill a process and wait until it is gone. Raises LabError when it is still there after
        ENDING_SECONDS."""
        self.signal(name, signal.SIGKILL)
        if self.wait(name, ENDING_SECONDS) is None:
            raise LabError(
                f"process {name} on {self.connection.target.known_as} does not end when killed",
                fix="look at the host's kernel log: the process is stuck in the kernel",
            )

    def on_end(self, name: str, command: str) -> None:
        """Register a shell command that the agent runs when the session ends, however it ends."""
        self._ask({"do": "undo", "name": name, "command": command})

    def undo_now(self, names: Sequence[str]) -> None:
        """Run these registered commands now instead, in this order; names that are not registered
        are skipped. Raises LabError when one fails."""
        self._raise_if_failed(self._ask({"do": "undo now", "names": list(names)}, 60)["undone"])

    # -- programs --------------------------------------------------------------------------

    def programs(self) -> str:
        """Return the folder for programs that are copied to the host: one that allows to run them.
        It is made at the first call, and removed when the session ends.

        Raises LabError if no folder of the host allows to run programs.
        """
        if self._programs is None:
            self._programs = self._program_folder()
        return self._programs

    def _program_folder(self) -> str:
        candidates = [
            f"{self.folder}/programs",
            *(f"{place}/hil-{self.name}" for place in _PROGRAM_PLACES),
        ]
        said = []
        for folder in candidates:
            undo, script = f"programs {folder}", f"{folder}/try"
            self.on_end(undo, f"rm -rf {folder}")
            tried = self.connection.run(
                f"mkdir -m 700 {folder} && echo '#!/bin/sh' >{script} && chmod 700 {script} && "
                f"{script} && rm {script}",
                check=False,
            )
            if tried.status == 0:
                return folder
            said.append(tried.stderr.decode(errors="replace").strip())
            self.undo_now([undo])
        raise LabError(
            f"no folder of {self.connection.target.known_as} allows to run programs: "
            f"{'; '.join(said)}",
            fix=f"mount one of {', '.join(_PROGRAM_PLACES)} without noexec, or copy the program to "
            "the host yourself and name it host:PATH",
        )

    def set_lease(self, seconds: float) -> None:
        """Change the lease: the session ends when nobody renews it for so many seconds."""
        self.lease = seconds
        self._ask({"do": "lease", "seconds": seconds})
