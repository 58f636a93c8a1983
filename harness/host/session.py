"""A session on a host: a folder, an agent that owns the session's processes, and its lease.

A thread renews the lease. If the link drops, the thread connects again; if this process is killed,
the agent ends everything when the lease runs out (see harness/host/agent). `Session.adopt` takes
over the session that is inside a restored snapshot. All waits are on the monotonic clock.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from harness import kernel_log
from harness.errors import HarnessError, HilError, LabError
from harness.host.agent.processes import KILL_SECONDS
from harness.host.agent.undoing import UNDO_SECONDS
from harness.host.connection import CommandFailedError, Connection, LinkLostError
from harness.host.holder import Holder
from harness.host.program import script
from harness.waiting import wait_for

ROOT = "/run/hil"
#: The package of the program that runs on the host.
AGENT = "harness.host.agent"
#: Where programs are put if the session's folder does not allow to run them: Debian mounts /run
#: noexec. In the order of preference: what a host empties by itself comes first.
_PROGRAM_PLACES = ("/tmp", "/var/tmp", "/root")
LEASE_SECONDS = 30.0
#: Longest that the agent may take to answer a request that makes it wait for nothing.
ANSWER_SECONDS = 15.0
#: Longest that a killed QEMU takes to exit: it unpins the guest's memory first.
ENDING_SECONDS = KILL_SECONDS
#: Longest that a session may take to end its processes and to run its undos.
GIVE_BACK_SECONDS = 300.0
#: How often it is asked meanwhile whether that is done.
POLL_SECONDS = 5.0

# What tells how a session has ended, when its agent does not: who has the lock, and the
# agents' own records.
_LOOK = """\
cd {root} 2>/dev/null && [ -e lock ] || {{ echo rebooted; exit 0; }}
if flock -n -s lock true; then echo free; else echo "held $(cat lock)"; fi
cat undos"""


class ReservedError(LabError):
    """Another run has the host: `by` tells it from others, `ending` says how to end it."""

    def __init__(self, message: str, *, by: str = "", ending: str = "") -> None:
        super().__init__(message, fix=f"wait until that run ends, or {ending}" if ending else None)
        self.by = by
        #: What a person who waits wants to know: who has the host, and how to end that.
        self.told = f"wait: {message}" + (f"; to have it now, {ending}" if ending else "")

    @classmethod
    def by_session(cls, host: str, lock: str) -> ReservedError:
        """Return the error for a host whose lock's file has this text."""
        session, _, holder = lock.strip().partition(" ")
        if not session:  # it has the lock since just now
            return cls(f"host {host} is in use", by="a run that has just begun")
        by = f"{Holder.parse(holder) or 'somebody unknown'}"
        return cls(
            f"host {host} is in use by {by}",
            by=by,
            ending=f"end its session {session} by `kill $(cat {ROOT}/{session}/agent.pid)` on the "
            "host; if its harness was killed, it ends by itself when its lease runs out",
        )


def check_free(connection: Connection) -> None:
    """Raise ReservedError if a session has the host now; LabError if the host does not tell."""
    text = connection.run(
        f"cd {ROOT} 2>/dev/null && [ -e lock ] || exit 0; "
        'flock -n -s lock true || echo "held $(cat lock)"'
    ).text
    held, _, lock = text.partition(" ")
    if held:
        raise ReservedError.by_session(connection.target.known_as, lock)


class AgentRefusedError(HarnessError):
    """The agent answered a request with an error."""


class SystemRefusedError(LabError):
    """The host's system refused what the agent was asked to do."""


class SessionOverError(LabError):
    """The session has ended, although this run did not end it."""


class NotUndoneError(LabError):
    """Something that was done to the host could not be undone, or it is not known whether it is."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        unknown = (
            "if the agent runs, it goes on with it by itself; if it does not, the next run on the "
            "host undoes the rest first. That run says what came of it"
        )
        super().__init__(message, fix=fix or unknown)


class Session:
    """A live session. Everything that it started ends with it."""

    def __init__(self, connection: Connection, name: str, lease: float) -> None:
        self.connection = connection
        self.name = name
        self.folder = f"{ROOT}/{name}"
        self.lease = lease
        #: The processes that the harness has ended, or tried to, by name.
        self.ended: set[str] = set()
        #: How earlier sessions on the host ended, of which nobody was told: a sentence for each.
        self.inherited: tuple[str, ...] = ()
        self._programs: str | None = None
        self._kernel_seen = 0
        self._ended = threading.Event()
        self._renewed = time.monotonic()
        self._problem: Exception | None = None  # of the thread, for the next caller
        self._renewer = threading.Thread(target=self._renew, name=f"lease {name}", daemon=True)

    # -- life ------------------------------------------------------------------------------

    @classmethod
    def start(cls, connection: Connection, *, lease: float = LEASE_SECONDS) -> Session:
        """Start a session with a lease of `lease` seconds; its owner calls `end` or `abandon`. What
        a session that was killed has left on the host is undone first: see `inherited`.

        Raises ReservedError when another session has the host, LabError when the host has no
        usable Python.
        """
        session = cls(connection, secrets.token_hex(4), lease)
        source = script(AGENT)
        agent = ["python3", "-I", "-", session.folder, str(lease), Holder.me().json()]
        try:
            # The agent makes the session's folder, once it has the host's lock.
            connection.run(agent, stdin=source)
        except CommandFailedError as failed:
            said = failed.completed.stderr.decode(errors="replace") if failed.completed else ""
            _, reserved, lock = said.partition("RESERVED ")
            if reserved:
                raise ReservedError.by_session(connection.target.known_as, lock) from None
            raise LabError(
                f"the agent does not start on {connection.target.known_as}: {failed.message}",
                fix="install Python 3.9 or newer on the host, and let the inventory's user write "
                "to /run",
            ) from failed
        except BaseException:
            # The agent may be there already. If it comes later, it ends when its lease runs out.
            with contextlib.suppress(HilError):
                session._request({"do": "end", "seconds": POLL_SECONDS}, 2 * POLL_SECONDS)
            raise
        session._renewer.start()
        try:
            session._watch_kernel()
            session.inherited = session._take_over()
        except BaseException:
            with contextlib.suppress(HilError):
                session.end()
            raise
        return session

    def _watch_kernel(self) -> None:
        try:
            self._ask({"do": "watch kernel", "pattern": kernel_log.BUG})
        except (AgentRefusedError, SystemRefusedError) as refused:
            raise LabError(
                f"the kernel log of {self.connection.target.known_as} cannot be watched: {refused}",
                fix="log in as root, and boot a kernel with CONFIG_PRINTK: the host's kernel is "
                "under test",
            ) from refused

    def _take_over(self) -> tuple[str, ...]:
        """Wait until what a killed session left is undone. Return how it and others ended."""

        def lost(problem: LabError) -> None:
            if not isinstance(problem, LinkLostError):
                raise problem

        what = f"what a killed session left on {self._host} to be undone"
        left = self._poll(
            "inherited", "inherited", what, deadline=GIVE_BACK_SECONDS, otherwise=lost
        )
        return tuple(map(_told, left))

    @classmethod
    def adopt(cls, connection: Connection, name: str, lease: float) -> Session:
        """Take over the session `name` that runs on the host with a lease of `lease` seconds.
        Raises LabError when it does not answer."""
        session = cls(connection, name, lease)
        session._ask({"do": "adopt", "holder": asdict(Holder.me())})
        session._renewer.start()
        session.kernel_reports()
        return session

    def abandon(self) -> None:
        """Stop renewing the lease and end nothing: the host is about to go back to a snapshot, or
        a person takes over."""
        self._ended.set()
        self._renewer.join()

    def end(self) -> None:
        """End all processes and run all registered undos; return when the host is free again. A
        session that has ended already is not ended again, and nor is one whose host has been
        booted since: a reboot undoes everything.

        Raises NotUndoneError when an undo failed, or when it is not known what came of them: then
        the host may not be as it was before. Raises what the lease's thread met, if no caller was
        told of it.
        """
        self._ended.set()
        try:
            undone = self._give_back()
        finally:
            self._renewer.join()
        self._raise_if_failed(undone)
        self._raise_problem()

    def _give_back(self) -> Mapping[str, tuple[int, str]]:
        """End the session and return what came of its undos."""
        undone: Mapping[str, tuple[int, str]] = self._poll(
            "end",
            "undone",
            f"session {self.name} to give back {self._host}",
            # An agent that has not heard that it is to end, ends when the lease runs out.
            deadline=GIVE_BACK_SECONDS + min(self.lease, LEASE_SECONDS),
            otherwise=self._settled,
        )
        return undone

    def _settled(self, problem: LabError) -> Mapping[str, tuple[int, str]] | None:
        """Return what came of the undos of a session whose agent does not tell, because of
        `problem`; None if that is not known yet."""
        try:
            said = self.connection.run(_LOOK.format(root=ROOT), check=False).text
        except (LinkLostError, CommandFailedError):
            return None
        except LabError as unknown:
            raise NotUndoneError(
                f"it is not known whether {self._host} is given back: {problem.message}; then: "
                f"{unknown.message}"
            ) from unknown
        lock, _, records = said.partition("\n")
        if lock == "rebooted":
            return {}
        state, _, holder = lock.partition(" ")
        if holder.split(" ")[0] == self.name:
            return None
        return self._outcome(records, is_free=state == "free")

    def _outcome(self, records: str, *, is_free: bool) -> Mapping[str, tuple[int, str]] | None:
        """Return what the agents' records say of this session's undos; None if the agent of another
        session runs them now. Raises NotUndoneError if they do not say that they were run."""
        try:
            state = json.loads(records)
        except ValueError:
            state = {"current": None, "ended": []}
        for record in state["ended"]:
            if record["session"] == self.name:
                found: Mapping[str, tuple[int, str]] = record["undone"]
                return found
        current = state["current"]
        if current and current["session"] == self.name:
            if not is_free:
                return None
            left = ", ".join(name for name, _ in current["undos"]) or "nothing"
            raise NotUndoneError(
                f"the agent on {self._host} was killed before it gave the host back; not undone: "
                f"{left}",
                fix="look in the host's kernel log for what killed it; the next run on the host "
                "undoes this first",
            )
        raise NotUndoneError(
            f"how session {self.name} ended on {self._host} is not written down there",
            fix="reboot the host if its devices are not as they were",
        )

    @property
    def _host(self) -> str:
        return self.connection.target.known_as

    def _raise_if_failed(self, undone: Mapping[str, tuple[int, str]]) -> None:
        failed = _failures(undone)
        if failed:
            raise NotUndoneError(
                f"could not be undone on {self._host}: {failed}",
                fix="undo these by hand, or reboot the host",
            )

    # -- the lease -------------------------------------------------------------------------

    def _renew(self) -> None:
        """Renew the lease until the session ends. Nothing ends this thread but that."""
        pause = self.lease / 4
        while not self._ended.wait(pause):
            pause = self.lease / 4
            try:
                self._request({"do": "renew"}, min(ANSWER_SECONDS, self.lease / 4))
            except SessionOverError as over:
                self._problem = over
                return
            except LabError:
                # The link is lost, most likely. Connect again while the lease lasts.
                pause = self.lease / 30
            except Exception as problem:
                self._problem = problem

    def _raise_problem(self) -> None:
        """Raise what the lease's thread met that is no loss of the link, once."""
        problem, self._problem = self._problem, None
        if problem:
            raise problem

    # -- requests --------------------------------------------------------------------------

    def _ask(
        self, request: Mapping[str, object], seconds: float = ANSWER_SECONDS
    ) -> dict[str, Any]:
        self._raise_problem()
        return self._request(request, seconds)

    def _request(self, request: Mapping[str, object], seconds: float) -> dict[str, Any]:
        began = time.monotonic()
        try:
            answer = self.connection.ask(f"{self.folder}/agent.sock", request, timeout=seconds)
        except LinkLostError:
            raise
        except LabError as problem:
            silent = time.monotonic() - self._renewed
            if silent < self.lease:
                raise
            raise SessionOverError(
                f"session {self.name} on {self._host} has ended: nothing renewed its lease of "
                f"{self.lease:.0f} s for {silent:.0f} s; {problem.message}",
                fix="look why the link was lost for so long",
            ) from problem
        if "over" in answer:
            raise SessionOverError(
                f"session {self.name} on {self._host} has ended: {answer['over']}",
                fix="run the tests again; look why the link was lost if the lease ran out",
            )
        if "error" in answer:
            if answer.get("by") == "system":
                raise SystemRefusedError(
                    f"{self._host} refuses the agent to {request['do']}: {answer['error']}",
                    fix="look whether a disk of the host is full or read-only",
                )
            raise AgentRefusedError(f"agent, {request['do']}: {answer['error']}")
        if request["do"] in ("renew", "lease"):
            self._renewed = began
        return answer

    def _poll(
        self,
        verb: str,
        key: str,
        what: str,
        *,
        deadline: float,
        otherwise: Callable[[LabError], Any],
    ) -> Any:
        """Ask until the answer has `key`, and return that; where there is no answer, return what
        `otherwise` returns, unless it is None. Raises NotUndoneError after the deadline."""
        doing = ""

        def asked() -> tuple[Any] | None:
            nonlocal doing
            request = {"do": verb, "seconds": POLL_SECONDS}
            try:
                answer = self._request(request, POLL_SECONDS + ANSWER_SECONDS)
                doing = answer.get("doing", doing)
                found = answer.get(key)
            except LabError as problem:
                doing = problem.message
                found = otherwise(problem)
            # What was found may be empty.
            return None if found is None else (found,)

        return wait_for(
            *(what, asked),
            deadline=deadline,
            interval=0.5,
            error=NotUndoneError,
            last_seen=lambda: doing,
        )[0]

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

    @property
    def kernel_has_reported(self) -> bool:
        """Return whether the host's kernel had reported a bug by the last call of
        `kernel_reports`, in this session or in what it was adopted from."""
        return self._kernel_seen > 0

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
                f"process {name} on {self._host} does not end when killed",
                fix="look at the host's kernel log: the process is stuck in the kernel",
            )

    def on_end(self, name: str, command: str) -> None:
        """Register a shell command that the agent runs when the session ends, however it ends. Do
        so before what it undoes: if the agent is killed, the next one runs it, so that the command
        may find nothing to undo, and may run twice. The newest runs first. Commands of the same
        name are all kept."""
        self._ask({"do": "undo", "name": name, "command": command})

    def registered(self) -> frozenset[str]:
        """Return the names of the commands that are registered."""
        return frozenset(self._ask({"do": "undos"})["names"])

    def undo_now(self, names: Sequence[str]) -> None:
        """Run these registered commands now instead, in this order; names that are not registered
        are skipped. Raises NotUndoneError when one fails."""
        longest = (UNDO_SECONDS + ANSWER_SECONDS) * (len(names) + 1)
        done = self._ask({"do": "undo now", "names": list(names)}, longest)
        self._raise_if_failed(done["undone"])

    # -- files -----------------------------------------------------------------------------

    def read_file(self, path: str, *, offset: int = 0) -> bytes:
        """Return a regular file's content from byte `offset` on, or its last -`offset` bytes. No
        process is started for it. Raises CommandFailedError if it cannot be read."""
        data = bytearray()
        while True:
            answer = self._read(path, offset)
            more = base64.b64decode(answer["data"])
            data += more
            offset = answer["start"] + len(more)
            if not more or offset >= answer["size"]:
                return bytes(data)

    def file_size(self, path: str) -> int:
        """Return the size of a regular file in bytes. Raises as `read_file`."""
        size: int = self._read(path, offset=-1)["size"]
        return size

    def _read(self, path: str, offset: int) -> dict[str, Any]:
        """Return the agent's answer with a part of a file."""
        answer = self._ask({"do": "read", "path": path, "offset": offset})
        if "unreadable" in answer:
            raise CommandFailedError(
                f"{path} on {self._host} cannot be read: {answer['unreadable']}"
            )
        return answer

    def clock(self) -> float:
        """Return the host's time, in seconds since the epoch."""
        now: float = self._ask({"do": "clock"})["time"]
        return now

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
            f"no folder of {self._host} allows to run programs: {'; '.join(said)}",
            fix=f"mount one of {', '.join(_PROGRAM_PLACES)} without noexec, or copy the program to "
            "the host yourself and name it host:PATH",
        )

    def set_lease(self, seconds: float) -> None:
        """Change the lease: the session ends when nobody renews it for so many seconds."""
        self.lease = seconds
        self._ask({"do": "lease", "seconds": seconds})


def _failures(undone: Mapping[str, tuple[int, str]]) -> dict[str, str]:
    return {name: said for name, (status, said) in undone.items() if status != 0}


def _told(record: Mapping[str, Any]) -> str:
    """Return the sentence that tells how an earlier session ended; its record is as in undos.py."""
    holder = Holder.parse(json.dumps(record["holder"]))
    whose = f" of {holder}" if holder else ""
    failed = _failures(record["undone"])
    outcome = f"this could not be undone: {failed}" if failed else "all that it did is undone"
    why = f" ended because {record['why']}" if record["why"] else ""
    return f"session {record['session']}{whose}{why}: {outcome}"
