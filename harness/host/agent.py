"""The harness's agent on a lab host: it owns the harness's processes there, under a lease.

It is sent to the host as one file and needs only Python's standard library, 3.9 or newer.

    python3 - FOLDER LEASE_SECONDS [HOLDER] <agent.py

makes FOLDER/agent.sock and returns when that answers; a daemon stays behind. HOLDER says who starts
the session, as one JSON object. The daemon speaks JSON lines, one request and one answer at a time
on each connection:

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
    {"do": "undos"}                      answer the names of those that are registered
    {"do": "watch kernel", "pattern": P}    keep the kernel's messages from now on in which the
                                         regular expression P is found
    {"do": "read", "path": P, "offset": N}      answer the size of a regular file, and a part of it
                                         as base64: READ_BYTES from byte N on at most; N < 0 counts
                                         from the end
    {"do": "clock"}                      answer the host's time, in seconds since the epoch
    {"do": "kernel"}                     answer all messages kept so far, each as [SECONDS, TEXT];
                                         SECONDS is the log's own time, since the boot
    {"do": "inherited", "seconds": S}    answer how earlier sessions ended that no other session
                                         was told of
    {"do": "end", "seconds": S}          end all processes, run the undos, remove FOLDER, release
                                         the host, and answer what came of the undos

The last two answer {"doing": WHAT} if they are not done within S seconds; without S they have no
limit. A session that is ending answers {"over": WHY} to everything else.

A host has one session at a time: the agent holds a lock on ../lock as long as it lives, and the
lock's file says whose it is; starting a second one fails and tells that. The session ends by itself
when no connection has renewed the lease for LEASE_SECONDS, so that a harness that was killed, or
that has lost its link for good, leaves nothing behind. The clock is CLOCK_MONOTONIC: a lease does
not run while the whole host is stopped, as in a saved snapshot of it.

What is to be undone is written to ../undos before it is done. An agent that finds the undos of one
that was killed first ends and undoes what that has left. A reboot empties /run, and undoes
everything by itself. A command may be run twice, by an agent that was killed and by the next one.
"""

from __future__ import annotations

import binascii
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
import stat
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
TERM_SECONDS = 3.0
#: Longest that a killed process takes to end: a QEMU unpins its guest's memory first.
KILL_SECONDS = 20.0
UNDO_SECONDS = 30.0
#: How much of a file is in one answer at most.
READ_BYTES = 1 << 18
#: How long a command that cannot be started, for want of memory or processes, is tried again.
START_SECONDS = 5.0
#: The most that a process which dies may leave as its core, in bytes. A QEMU's core is without its
#: guest's memory, and much smaller.
CORE_BYTES = 1 << 29
#: The most of a command's output that is kept, in bytes.
OUTPUT_BYTES = 1 << 13
#: Of how many ended sessions it is kept what came of their undos.
MOST_ENDED = 20
#: The environment variable that has the folder of the session that a process belongs to, whatever
#: its parent and its process group are.
MARK = "HIL_SESSION"
ASKED = "the harness ended it"
NOT_DONE, NOT_STARTED = 124, 126  # the exit statuses of timeout(1) and of a shell for these
STUCK = "does not end when it is killed: it is stuck in the kernel"

Request = dict[str, Any]
#: An exit status and an output.
Result = list[Any]
#: Work that goes on each time that it is asked to, and never waits.
Work = Generator[None, None, Any]


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
            if int(priority) < 8 and self.pattern.search(text):
                self.keep(int(microseconds) / 1e6, text.split("\n")[0])

    def keep(self, seconds: float, line: str) -> None:
        """Keep a message, or say in the last one's place that no more are kept."""
        if len(self.kept) < self.MOST_KEPT - 1:
            self.kept.append((seconds, line))
        elif len(self.kept) < self.MOST_KEPT:
            self.kept.append((seconds, f"{line} (no more than {self.MOST_KEPT} are kept)"))


# -- what outlives an agent --------------------------------------------------------------------


class Undos:
    """What is to be undone on the host, and what came of it, in a file that outlives the agent.

    `current` is the session that has not given the host back yet, and `ended` are the last ones
    that have. Each is {"session", "holder", "why": why it ended, "undos": [[NAME, COMMAND], …]
    oldest first, "undone": {NAME: [exit status, output]}, "told": whether a later session was told
    of it}. The file is replaced as a whole, so that no reader sees a half.
    """

    def __init__(self, root: str) -> None:
        self.path = os.path.join(root, "undos")
        self.current: Request | None = None
        self.ended: list[Request] = []
        try:
            with open(self.path) as file:
                found = json.load(file)
            self.current, self.ended = found["current"], found["ended"]
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as problem:
            unreadable = self.record("", None)
            unreadable["undone"] = {self.path: [1, f"cannot be read: {problem!r}"]}
            self.ended.append(unreadable)

    @staticmethod
    def record(session: str, holder: object) -> Request:
        empty: Request = {"why": "", "undos": [], "undone": {}, "told": False}
        return {"session": session, "holder": holder, **empty}

    def write(self) -> None:
        """Write the file. Raises OSError."""
        data = json.dumps({"current": self.current, "ended": self.ended}).encode()
        new = os.open(f"{self.path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(new, "wb") as file:
            file.write(data)
        os.replace(f"{self.path}.new", self.path)

    def note(self) -> None:
        """Write the file if that is possible. If it is not, the next agent repeats an undo, or does
        not learn what came of it, and that harms less than to stop here."""
        try:
            self.write()
        except OSError:
            traceback.print_exc()

    def add(self, name: str, command: str) -> None:
        """Register an undo. One of the same name stays, unless it is the same command: this is
        then the newest place of it. Raises OSError if it cannot be written down: then it is not
        registered."""
        assert self.current
        before = self.current["undos"]
        entry = [name, command]
        self.current["undos"] = [*(one for one in before if one != entry), entry]
        try:
            self.write()
        except OSError:
            self.current["undos"] = before
            raise

    def end(self) -> None:
        """Note that the current session has given the host back."""
        if self.current:
            self.ended = [*self.ended, self.current][-MOST_ENDED:]
            self.current = None
        self.note()


def merged(old: Result | None, new: Result) -> Result:
    """Return the result of two commands of one name."""
    return [old[0] or new[0], old[1] + new[1]] if old else new


# -- processes ---------------------------------------------------------------------------------


def status_of(pid: int) -> int | None:
    """Return the exit status of a child, negative for a signal; None while it runs. The child is
    not reaped: until it is, neither its number nor that of its process group is given to another
    process."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the process group of a child that is not reaped."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


class Process:
    """A process of the session. It is not reaped before the session ends."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self.pid = popen.pid
        self._status: int | None = None

    def status(self) -> int | None:
        if self._status is None:
            self._status = status_of(self.pid)
        return self._status

    def forget(self) -> None:
        """End what is left of the group of a process that has ended, and reap the process."""
        signal_group(self.pid, signal.SIGKILL)
        self.popen.wait()


def start(run: Callable[[], object], output: int) -> int:
    """Run `run` in a child with a process group of its own, with no descriptors but `output` as its
    outputs, and return its pid. Raises OSError."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, 1 << 10)  # above all the lock: it must not outlive the agent
        run()
        os._exit(0)
    except BaseException as problem:
        os.write(2, f"{problem!r}\n".encode())
    finally:
        os._exit(NOT_STARTED)


def shell(command: str, folder: str) -> Callable[[], NoReturn]:
    """Return a call that becomes a shell with this command, marked as the session's."""
    environment = {**os.environ, MARK: folder}
    return lambda: os.execve("/bin/sh", ["/bin/sh", "-c", command], environment)


def marked(belongs: Callable[[str], bool]) -> Iterator[tuple[int, int]]:
    """Yield pid and pidfd of each process whose mark is one that `belongs`. The pidfd was opened
    before the mark was read: it never means a later process of the same number."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            pidfd = os.pidfd_open(int(name))
        except OSError:
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            words = []
        prefix = f"{MARK}=".encode()
        folders = [os.fsdecode(word[len(prefix) :]) for word in words if word.startswith(prefix)]
        if folders and belongs(folders[0]):
            yield int(name), pidfd
        os.close(pidfd)


def sweep(belongs: Callable[[str], bool], seconds: float) -> None:
    """Kill all processes whose mark is one that `belongs`. Exit with what remains of them after so
    many seconds. This may hang, because it looks into processes that may be stuck in the kernel:
    run it in a child."""
    until = time.monotonic() + seconds
    while True:
        left = []
        for pid, pidfd in marked(belongs):
            left.append(pid)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not left:
            return
        if time.monotonic() > until:
            print(*(f"process {pid} {STUCK}" for pid in left), sep="; ", flush=True)
            os._exit(NOT_DONE)
        time.sleep(0.05)


# -- the agent ---------------------------------------------------------------------------------


class Job:
    """Work that goes on in turns. `answer` is None until it is done."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.answer: Request | None = None

    def advance(self) -> None:
        try:
            next(self.work)
        except StopIteration as done:
            self.answer = done.value or {}
        except Exception as problem:  # no work may end the agent
            traceback.print_exc()
            self.answer = {"error": repr(problem)}


@dataclass
class Pending:
    """A request whose answer is sent later: when `ready` returns it, or else `late` when the time
    `until` has come."""

    connection: socket.socket
    ready: Callable[[], Request | None]
    until: float
    late: Callable[[], Request]


class Agent:
    """All state of the agent. One thread uses it, and none of its methods waits."""

    def __init__(self, folder: str, lease: float, holder: object = None) -> None:
        self.folder = folder
        self.root = os.path.dirname(folder)
        self.lease = lease
        self.expires = time.monotonic() + lease
        self.processes: dict[str, Process] = {}
        self.sockets: list[str] = []
        self.pending: list[Pending] = []
        self.jobs: deque[Job] = deque()
        self.doing = ""
        self.reason = "its lease ran out"  # why it would end if the lease ended now
        self.over: str | None = None  # why the session ends, once it does
        self.ending: Job | None = None
        self.given_back = False
        self.kernel_log: KernelLog | None = None
        # What this session is told of earlier ones: it may ask again, if the link lost an answer.
        self.untold: list[Request] | None = None
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.undos = Undos(self.root)
        self.record = self.undos.record(os.path.basename(folder), holder)
        self.taking_over = self.take_over()

    # -- requests ------------------------------------------------------------------------

    def answer(self, request: Request, connection: socket.socket) -> Request | None:
        """Return the answer to one request, or None when `tick` will send it later.

        Raises ValueError for an unknown verb or process, KeyError for a missing field.
        """
        verb = request.get("do")
        if verb == "end":
            self.end(ASKED)
            self.later(connection, self.outcome, request, self.progress)
            return None
        if self.over is not None:
            return {"over": self.over}
        if verb == "renew":
            self.expires = time.monotonic() + self.lease
            return {"processes": {n: p.status() for n, p in self.processes.items()}}
        if verb == "lease":
            self.lease = float(request["seconds"])
            self.expires = time.monotonic() + self.lease
            return {}
        if verb == "pid":
            return {"pid": self.process(request).pid}
        if verb == "signal":
            process = self.process(request)
            if process.status() is None:
                os.kill(process.pid, request["number"])
            return {}
        if verb == "wait":
            process = self.process(request)

            def ended() -> Request | None:
                status = process.status()
                return None if status is None else {"status": status}

            self.later(connection, ended, request, lambda: {"status": None})
            return None
        if verb == "read":
            return read(request["path"], request["offset"])
        if verb == "clock":
            return {"time": time.time()}
        if verb == "watch kernel":
            self.kernel_log = KernelLog(request["pattern"])
            return {}
        if verb == "kernel":
            return {"kept": self.kernel_messages()}
        if verb == "inherited":
            self.later(connection, self.inherited, request, self.progress)
            return None
        if self.taking_over:
            raise ValueError("what a killed session has left is not undone yet")
        if verb == "spawn":
            return {"pid": self.spawn(request)}
        if verb == "undo":
            self.undos.add(request["name"], request["command"])
            return {}
        if verb == "undos":
            return {"names": [name for name, _ in self.record["undos"]]}
        if verb == "undo now":
            job = self.queue(self.undo_now(request["names"]))
            self.later(connection, lambda: job.answer, {}, self.progress)
            return None
        raise ValueError(f"unknown request {request!r}")

    def later(
        self,
        connection: socket.socket,
        ready: Callable[[], Request | None],
        request: Request,
        late: Callable[[], Request],
    ) -> None:
        until = time.monotonic() + request.get("seconds", float("inf"))
        self.pending.append(Pending(connection, ready, until, late))

    def progress(self) -> Request:
        return {"doing": self.doing}

    def inherited(self) -> Request | None:
        """Return how earlier sessions ended that nobody was told of; None while what they left is
        being undone."""
        if self.taking_over:
            return None
        if self.untold is None:
            self.untold = [one for one in self.undos.ended if not one["told"]]
            for one in self.untold:
                one["told"] = True
            self.undos.note()
        return {"inherited": self.untold}

    def kernel_messages(self) -> list[tuple[float, str]]:
        if self.kernel_log is None:
            raise ValueError("the kernel's log is not watched")
        self.kernel_log.read()
        return self.kernel_log.kept

    def process(self, request: Request) -> Process:
        if request["name"] not in self.processes:
            raise ValueError(f"no process named {request['name']}")
        return self.processes[request["name"]]

    def spawn(self, request: Request) -> int:
        name = request["name"]
        old = self.processes.get(name)
        if old is not None:
            if old.status() is None:
                raise ValueError(f"a process named {name} already runs")
            old.forget()
            del self.processes[name]
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
            popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, MARK: self.folder},
                pass_fds=list(descriptors.values()),
                preexec_fn=self.prepare,
                start_new_session=True,
            )
        self.processes[name] = Process(popen)
        return popen.pid

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
        """Go on with the work, send the answers that are due, and end the session when its lease
        has run out. Return the seconds until the next call."""
        now = time.monotonic()
        if self.kernel_log:
            try:
                self.kernel_log.read()  # the kernel's buffer is a ring
            except Exception:  # a witness that cannot be had ends no session
                traceback.print_exc()
        if now >= self.expires:
            self.end(self.reason)
        self.advance()
        self.send_due()
        if self.jobs:
            return 0.01
        return 0.05 if self.pending else max(0.05, min(1.0, self.expires - now))

    def advance(self) -> None:
        """Go on with the oldest job, and begin the next if it is done."""
        while self.jobs:
            self.jobs[0].advance()
            if self.jobs[0].answer is None:
                return
            self.jobs.popleft()

    def queue(self, work: Work) -> Job:
        self.jobs.append(Job(work))
        return self.jobs[-1]

    def send_due(self) -> None:
        now, still = time.monotonic(), []
        for one in self.pending:
            answer = one.ready()
            if answer is None and now < one.until:
                still.append(one)
            else:
                send(one.connection, one.late() if answer is None else answer)
        self.pending = still

    def run(self, call: Callable[[], object], seconds: float) -> Generator[None, None, Result]:
        """Run a call in a child; return the child's exit status and output. The status is NOT_DONE
        for one that was not done within so many seconds, and NOT_STARTED for one that could not be
        started."""
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    output = os.memfd_create("output")
                    stack.callback(os.close, output)
                    pid = start(call, output)
                except OSError as problem:
                    if time.monotonic() > until:
                        return [NOT_STARTED, f"could not be started: {problem}"]
                else:
                    return (yield from self.watch(pid, output, seconds))
            yield

    def watch(self, pid: int, output: int, seconds: float) -> Generator[None, None, Result]:
        yield from self.until(lambda: status_of(pid) is not None, seconds)
        status, said = status_of(pid), ""
        if status is None:
            said = f"not done within {seconds:.0f} s"
            signal_group(pid, signal.SIGKILL)
            yield from self.until(lambda: status_of(pid) is not None, 1.0)
            status = NOT_DONE
            if status_of(pid) is None:
                said += f", and process {pid} {STUCK}"
        said += os.pread(output, OUTPUT_BYTES, 0).decode(errors="replace")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return [status, said]

    @staticmethod
    def until(condition: Callable[[], bool], seconds: float) -> Work:
        """Go on when the condition holds, or after so many seconds."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            yield

    # -- undoing -------------------------------------------------------------------------

    def take_over(self) -> bool:
        """Begin this session: at once, or after the work of undoing what killed sessions have left.
        Return whether there is such work. Raises OSError if that cannot be written down."""
        left = [
            entry.path
            for entry in os.scandir(self.root)
            if entry.is_dir(follow_symlinks=False) and entry.path != self.folder
        ]
        killed = self.undos.current
        if killed is None and left:
            killed = self.undos.record(os.path.basename(left[0]), None)
        self.undos.current = killed or self.record
        self.undos.write()
        if killed:
            self.queue(self.undo_killed(killed, left))
        return killed is not None

    def undo_killed(self, killed: Request, folders: Iterable[str]) -> Work:
        killed["why"] = "its agent was killed"
        try:
            # Every other session below this root is dead, because this one has the lock.
            yield from self.sweep(
                killed,
                lambda mark: os.path.dirname(mark) == self.root and mark != self.folder,
                KILL_SECONDS,
            )
            yield from self.undo(killed, killed["undos"][::-1], killed["undone"])
            # An undo may still have used files there.
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            self.undos.end()
            self.undos.current = self.record
            self.undos.note()
            self.taking_over = False

    def sweep(self, record: Request, belongs: Callable[[str], bool], seconds: float) -> Work:
        self.doing = "end processes"
        result = yield from self.run(lambda: sweep(belongs, seconds), seconds + 1)
        if result[0]:
            record["undone"]["processes"] = result

    def undo(self, record: Request, chosen: Iterable[list[str]], done: Request) -> Work:
        """Run these undos of a record in this order, and put the results into `done`."""
        for entry in list(chosen):
            name, command = entry
            self.doing = f"undo {name}"
            result = yield from self.run(shell(command, self.folder), UNDO_SECONDS)
            done[name] = merged(done.get(name), result)
            # The same undo may have been registered anew meanwhile: that one stays.
            record["undos"] = [one for one in record["undos"] if one is not entry]
            self.undos.note()

    def undo_now(self, names: Iterable[str]) -> Work:
        record, done = self.record, {}  # type: Request, Request
        for name in names:
            yield from self.undo(record, [u for u in record["undos"][::-1] if u[0] == name], done)
        for name, result in done.items():
            record["undone"].pop(name, None)
            if result[0]:  # the end tells it, too: this answer may be lost
                record["undone"][name] = result
        self.undos.note()
        return {"undone": done}

    def end(self, why: str) -> None:
        """Begin to end the session, unless it ends already."""
        if self.over is None:
            self.over = why
            self.ending = self.queue(self.give_back())

    def expire(self, reason: str) -> None:
        """Have the session end for this reason at the next tick."""
        self.reason, self.expires = reason, 0.0

    @property
    def ended(self) -> bool:
        """Return whether all is ended and undone, as far as it can be."""
        return self.ending is not None and self.ending.answer is not None

    def outcome(self) -> Request | None:
        """Return what came of the undos, once the next session may begin."""
        return self.ending.answer if self.ending and self.given_back else None

    def give_back(self) -> Work:
        """End all processes and run the undos. What could not be done is among the results of the
        undos; nothing waits for it."""
        record, done = self.record, self.record["undone"]
        record["why"] = self.over
        self.undos.note()
        self.doing = "end processes"
        for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            for process in self.processes.values():
                # The signal goes to the process group: a process may have children of its own.
                signal_group(process.pid, number)
            yield from self.until(self.all_ended, seconds)
        yield from self.sweep(record, lambda mark: mark == self.folder, 1.0)
        for name, process in self.processes.items():
            if process.status() is None:
                done[f"process {name}"] = [NOT_DONE, f"process {process.pid} {STUCK}"]
            else:
                process.popen.wait()
        yield from self.undo(record, record["undos"][::-1], done)
        # The harness that asked is told, and later sessions need not be, unless something is left.
        record["told"] = self.over == ASKED and not any(status for status, _ in done.values())
        for path in self.sockets:
            with contextlib.suppress(OSError):
                os.unlink(path)
        return {"undone": done}

    def all_ended(self) -> bool:
        return all(process.status() is not None for process in self.processes.values())


def read(path: str, offset: int) -> Request:
    try:
        # Whoever opens a FIFO would wait for its writer.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                return {"unreadable": "no regular file"}
            start = offset if offset >= 0 else max(0, found.st_size + offset)
            data = binascii.b2a_base64(os.pread(file, READ_BYTES, start), newline=False)
        finally:
            os.close(file)
    except OSError as problem:
        return {"unreadable": str(problem)}
    return {"start": start, "data": data.decode(), "size": found.st_size}


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
                try:
                    accepted, _ = listener.accept()
                except OSError:  # too many files are open: another connection will end first
                    continue
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
                agent.pending = [one for one in agent.pending if one.connection is not connection]
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
        if isinstance(problem, OSError):
            answer["by"] = "system"  # as on a full disk, which is no fault of who asked
    if answer is not None:
        send(connection, answer)


def reserve(folder: str, holder: object) -> int:
    """Lock the host for this session and return the lock's descriptor; the kernel releases the lock
    when the process ends, however it ends. The lock's file has the session and its holder. Exit
    with "RESERVED SESSION HOLDER" when another session has the lock."""
    path = os.path.join(os.path.dirname(folder), "lock")
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("RESERVED " + os.pread(lock, 1 << 12, 0).decode(errors="replace"))
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.path.basename(folder)} {json.dumps(holder)}".encode(), 0)
    return lock


def main(folder: str, lease: float, holder: object) -> None:
    os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
    lock = reserve(folder, holder)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    agent = Agent(folder, lease, holder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(folder, "agent.sock"))
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
    signal.signal(signal.SIGTERM, lambda *_: agent.expire("somebody has ended its agent"))
    try:
        serve(agent, listener)
    finally:
        agent.end("its agent failed")
        while not agent.ended:
            agent.advance()
            time.sleep(0.01)
        agent.send_due()
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)
        if not agent.record["undos"]:  # else the next agent runs the rest
            agent.undos.end()
        os.ftruncate(lock, 0)
        os.close(lock)
        # Whoever waits for the end may start the next session at once.
        agent.given_back = True
        agent.send_due()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else None)
