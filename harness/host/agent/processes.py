"""The processes that the session has started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence

from harness.host.agent import marks
from harness.host.agent.children import NOT_DONE, STUCK, Result, signal_group, status_of
from harness.host.agent.jobs import Work, until

PR_SET_PDEATHSIG = 1
TERM_SECONDS = 3.0
#: Longest that a killed process takes to end: a QEMU unpins its guest's memory first.
KILL_SECONDS = 20.0
#: The most that a process which dies may leave as its core, in bytes. A QEMU's core is without its
#: guest's memory, and much smaller.
CORE_BYTES = 1 << 29


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


class Processes:
    """All processes of a session, by their names, and the sockets that they were given."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._named: dict[str, Process] = {}
        self._sockets: list[str] = []
        self._libc = ctypes.CDLL(None, use_errno=True)

    def named(self, name: str) -> Process:
        """Return a process. Raises ValueError if there is none of this name."""
        if name not in self._named:
            raise ValueError(f"no process named {name}")
        return self._named[name]

    def statuses(self) -> dict[str, int | None]:
        return {name: process.status() for name, process in self._named.items()}

    def spawn(self, name: str, argv: Sequence[str], log: str, listen: Mapping[str, str]) -> int:
        """Start a process and return its pid. Raises ValueError if one of this name runs, OSError
        if it cannot be started."""
        old = self._named.get(name)
        if old is not None:
            if old.status() is None:
                raise ValueError(f"a process named {name} already runs")
            old.forget()
            del self._named[name]
        descriptors = {}
        with contextlib.ExitStack() as stack:
            for label, path in listen.items():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                # The socket exists before the process that serves it: an early client waits
                # instead of failing.
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(path)
                listener.listen(4)
                descriptors[label] = listener.fileno()
                self._sockets.append(path)
            output = stack.enter_context(open(log, "ab"))
            popen = subprocess.Popen(
                [_substitute(word, descriptors) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                env=marks.environment(self._folder),
                pass_fds=list(descriptors.values()),
                preexec_fn=self._prepare,
                start_new_session=True,
            )
        self._named[name] = Process(popen)
        return popen.pid

    def _prepare(self) -> None:
        """Have the new process die with the agent, and leave a core if it dies before."""
        self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(ValueError, OSError):  # the host's owner may allow less
            resource.setrlimit(resource.RLIMIT_CORE, (CORE_BYTES, CORE_BYTES))

    def end(self) -> Work:
        """Terminate all processes, and kill those that do not end."""
        for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            for process in self._named.values():
                # The signal goes to the process group: a process may have children of its own.
                signal_group(process.pid, number)
            yield from until(self._all_ended, seconds)

    def _all_ended(self) -> bool:
        return all(process.status() is not None for process in self._named.values())

    def reap(self) -> dict[str, Result]:
        """Reap the processes that have ended. Return the others as what could not be undone."""
        stuck: dict[str, Result] = {}
        for name, process in self._named.items():
            if process.status() is None:
                stuck[f"process {name}"] = [NOT_DONE, f"process {process.pid} {STUCK}"]
            else:
                process.popen.wait()
        return stuck

    def remove_sockets(self) -> None:
        for path in self._sockets:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _substitute(word: str, descriptors: Mapping[str, int]) -> str:
    for label, number in descriptors.items():
        word = word.replace("{" + label + "}", str(number))
    return word
