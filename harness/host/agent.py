"""The harness's agent on a lab host: it owns the harness's processes there, under a lease.

It is sent to the host as one file and needs only Python's standard library, 3.9 or newer.

    python3 agent.py FOLDER LEASE_SECONDS

makes FOLDER/agent.sock and returns when that answers; a daemon stays behind. It speaks JSON
lines, one request and one answer at a time on each connection:

    {"do": "renew"}                      start the lease anew; the answer names all processes
    {"do": "lease", "seconds": S}        change the lease's length and start it anew
    {"do": "spawn", "name": N, "argv": […], "listen": {"qmp": PATH}, "log": PATH}
                                         "{qmp}" in argv becomes the number of a listening socket
    {"do": "pid", "name": N}
    {"do": "signal", "name": N, "number": 9}
    {"do": "wait", "name": N, "seconds": 5}     answer its exit status once it has ended, null if
                                         it still runs after so many seconds
    {"do": "undo", "name": N, "command": "…"}   run a shell command when the session ends
    {"do": "undo now", "names": […]}     run these now instead; unknown names are skipped
    {"do": "watch kernel", "pattern": P}    keep the kernel's messages from now on in which the
                                         regular expression P is found
    {"do": "kernel"}                     answer all messages kept so far, each as [SECONDS, TEXT];
                                         SECONDS is the log's own time, since the boot
    {"do": "end"}                        end all processes, run the undos, remove FOLDER

A host has one session at a time: the agent holds a lock on ../lock as long as it lives; starting a
second one fails and names the first. The session ends by itself when no connection has renewed the
lease for LEASE_SECONDS, so that a harness that was killed, or that has lost its link for good,
leaves nothing behind. The clock is CLOCK_MONOTONIC: a lease does not run while the whole host is
stopped, as in a saved snapshot of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

PR_SET_PDEATHSIG = 1
TERM_SECONDS = 3.0
UNDO_SECONDS = 30.0
#: The most that a process which dies may leave as its core, in bytes. A QEMU's core is without its
#: guest's memory, and much smaller.
CORE_BYTES = 1 << 29

Request = dict[str, Any]


class KernelLog:
    """The messages of the host's kernel from now on that a pattern is found in.

    A record of /dev/kmsg is "PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT" (Documentation/ABI/testing/
    dev-kmsg). Raises OSError if the log cannot be read.
    """

    MOST_KEPT = 500

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)
        self.kept: list[tuple[float, str]] = []
        self.file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self.file, 0, os.SEEK_END)

    def read(self) -> None:
        """Read what has come since the last call."""
        while True:
            try:
                record = os.read(self.file, 1 << 13).decode(errors="replace")
            except BlockingIOError:
                return
            except BrokenPipeError:
                continue  # records were overwritten before they were read: go on with the oldest
            head, _, text = record.partition(";")
            priority, _, microseconds = head.split(",")[:3]
            # A priority below 8 is the kernel's own message: any process may write to /dev/kmsg.
            if int(priority) < 8 and self.pattern.search(text) and len(self.kept) < self.MOST_KEPT:
                self.kept.append((int(microseconds) / 1e6, text.split("\n")[0]))


class Agent:
    """All state of the agent. One thread uses it; `serve` never blocks except in `end`."""

    def __init__(self, folder: str, lease: float) -> None:
        self.folder = folder
        self.lease = lease
        self.expires = time.monotonic() + lease
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.sockets: list[str] = []
        self.undos: dict[str, str] = {}
        self.ended = False
        self.waiting: list[tuple[socket.socket, str, float]] = []  # connection, name, deadline
        self.kernel_log: KernelLog | None = None
        self.libc = ctypes.CDLL(None, use_errno=True)

    # -- requests ------------------------------------------------------------------------

    def answer(self, request: Request, connection: socket.socket) -> Request | None:
        """Return the answer to one request, or None when `tick` will send it later.

        Raises ValueError for an unknown verb or process, KeyError for a missing field.
        """
        verb = request.get("do")
        if verb == "renew":
            self.expires = time.monotonic() + self.lease
            return {"processes": {n: p.poll() for n, p in self.processes.items()}}
        if verb == "lease":
            self.lease = float(request["seconds"])
            self.expires = time.monotonic() + self.lease
            return {}
        if verb == "spawn":
            return {"pid": self.spawn(request)}
        if verb == "pid":
            return {"pid": self.process(request).pid}
        if verb == "signal":
            process = self.process(request)
            if process.poll() is None:
                process.send_signal(request["number"])
            return {}
        if verb == "wait":
            self.process(request)
            until = time.monotonic() + request["seconds"]
            self.waiting.append((connection, request["name"], until))
            return None
        if verb == "undo":
            self.undos[request["name"]] = request["command"]
            return {}
        if verb == "undo now":
            return {"undone": self.undo(request["names"])}
        if verb == "watch kernel":
            self.kernel_log = KernelLog(request["pattern"])
            return {}
        if verb == "kernel":
            return {"kept": self.kernel_messages()}
        if verb == "end":
            return {"undone": self.end()}
        raise ValueError(f"unknown request {request!r}")

    def kernel_messages(self) -> list[tuple[float, str]]:
        if self.kernel_log is None:
            raise ValueError("the kernel's log is not watched")
        self.kernel_log.read()
        return self.kernel_log.kept

    def process(self, request: Request) -> subprocess.Popen[bytes]:
        if request["name"] not in self.processes:
            raise ValueError(f"no process named {request['name']}")
        return self.processes[request["name"]]

    def spawn(self, request: Request) -> int:
        name = request["name"]
        old = self.processes.get(name)
        if old is not None and old.poll() is None:
            raise ValueError(f"a process named {name} already runs")
        descriptors = {}
        with contextlib.ExitStack() as stack:
            for label, path in request.get("listen", {}).items():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                # The socket exists before the process that serves it: an early client waits
                # instead of failing.
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(path)
                listener.listen(4)
                descriptors[label] = listener.fileno()
                self.sockets.append(path)
            argv = [self.substitute(word, descriptors) for word in request["argv"]]
            log = stack.enter_context(open(request["log"], "ab"))
            self.processes[name] = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                pass_fds=list(descriptors.values()),
                preexec_fn=self.prepare,
                start_new_session=True,
            )
        return self.processes[name].pid

    @staticmethod
    def substitute(word: str, descriptors: dict[str, int]) -> str:
        for label, number in descriptors.items():
            word = word.replace("{" + label + "}", str(number))
        return word

    def prepare(self) -> None:
        """Have the new process die with the agent, and leave a core if it dies before."""
        self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(ValueError, OSError):  # the host's owner may allow less
            resource.setrlimit(resource.RLIMIT_CORE, (CORE_BYTES, CORE_BYTES))

    # -- time ----------------------------------------------------------------------------

    def tick(self) -> float:
        """Answer the waits whose process has ended or whose time is up, and end the session when
        its lease has run out. Return the seconds until the next call."""
        now = time.monotonic()
        if self.kernel_log:
            self.kernel_log.read()  # the kernel's buffer is a ring
        still = []
        for connection, name, until in self.waiting:
            status = self.processes[name].poll()
            if status is None and now < until:
                still.append((connection, name, until))
            else:
                send(connection, {"status": status})
        self.waiting = still
        if now >= self.expires and not self.ended:
            self.end()
        return 0.05 if still else max(0.05, min(1.0, self.expires - now))

    def end(self) -> Request:
        """Send TERM, then KILL, to every process group; then run the undos, newest first, and
        return what `undo` does."""
        self.ended = True
        self.kill_all(signal.SIGTERM)
        limit = time.monotonic() + TERM_SECONDS
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, limit - time.monotonic()))
        self.kill_all(signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        done = self.undo(reversed(list(self.undos)))
        for path in self.sockets:
            with contextlib.suppress(OSError):
                os.unlink(path)
        return done

    def undo(self, names: Iterable[str]) -> Request:
        """Run these undos in this order. Return {name: [exit status, output]}; the status is 124
        for one that was not done within UNDO_SECONDS."""
        done: Request = {}
        for name in names:
            command = self.undos.pop(name, None)
            if command is None:
                continue
            try:
                ended = subprocess.run(
                    ["/bin/sh", "-c", command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=UNDO_SECONDS,
                )
                done[name] = [ended.returncode, ended.stdout.decode(errors="replace")]
            except subprocess.TimeoutExpired:
                done[name] = [124, f"not done within {UNDO_SECONDS:.0f} s"]
        return done

    def kill_all(self, number: int) -> None:
        for process in self.processes.values():
            # The signal goes to the process group: a process may have children of its own.
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None or number == signal.SIGKILL:
                    os.killpg(process.pid, number)


def send(connection: socket.socket, message: Request) -> None:
    # The session goes on when a peer has closed its connection.
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def serve(agent: Agent, listener: socket.socket) -> None:
    """Answer requests until the session has ended."""
    chosen = selectors.DefaultSelector()
    chosen.register(listener, selectors.EVENT_READ)
    pending: dict[socket.socket, bytes] = {}
    while not agent.ended:
        for key, _ in chosen.select(agent.tick()):
            connection: Any = key.fileobj
            if connection is listener:
                accepted, _ = listener.accept()
                accepted.settimeout(10)
                pending[accepted] = b""
                chosen.register(accepted, selectors.EVENT_READ)
                continue
            try:
                data = connection.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                chosen.unregister(connection)
                del pending[connection]
                agent.waiting = [w for w in agent.waiting if w[0] is not connection]
                connection.close()
                continue
            lines = (pending[connection] + data).split(b"\n")
            pending[connection] = lines.pop()
            for line in lines:
                handle(agent, connection, line)


def handle(agent: Agent, connection: socket.socket, line: bytes) -> None:
    try:
        answer = agent.answer(json.loads(line), connection)
    except Exception as problem:  # no request may end the agent
        answer = {"error": f"{type(problem).__name__}: {problem}"}
    if answer is not None:
        send(connection, answer)


def reserve(folder: str) -> Any:
    """Lock the host for this session and return the lock's file; the kernel releases the lock when
    the process ends, however it ends. Exit with "RESERVED SESSION" when another session has it."""
    lock = open(os.path.join(os.path.dirname(folder), "lock"), "a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        sys.exit("RESERVED " + lock.read().strip())
    lock.truncate(0)
    lock.write(os.path.basename(folder))
    lock.flush()
    return lock


def main(folder: str, lease: float) -> None:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    lock = reserve(folder)
    path = os.path.join(folder, "agent.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(8)
    if os.fork():
        return  # clients may connect from here on: the kernel queues them until the daemon accepts
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(os.path.join(folder, "agent.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number, target in ((0, null), (1, log), (2, log)):
        os.dup2(target, number)
    with open(os.path.join(folder, "agent.pid"), "w") as file:
        file.write(str(os.getpid()))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    agent = Agent(folder, lease)
    signal.signal(signal.SIGTERM, lambda *_: setattr(agent, "expires", 0.0))
    try:
        serve(agent, listener)
    finally:
        if not agent.ended:
            agent.end()
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
