"""One SSH link to a lab host: commands, files, and the host's Unix sockets.

The link may drop and come back: an operation during which it drops raises `LinkLostError`, and the
next operation connects again. A link that goes silent is dropped. Host keys are always checked.
"""

from __future__ import annotations

import json
import logging
import math
import re
import select
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import paramiko
import tenacity

from harness.errors import LabError
from harness.host.channels import (
    CHUNK_BYTES,
    CONNECT_SECONDS,
    Relay,
    Transport,
    close,
)
from harness.host.link import Link, UnreachableError
from harness.host.target import Target
from harness.waiting import wait_for

RECONNECT_SECONDS = 30.0
#: How long one try to come back waits for the TCP connection: shorter than a lease, and than the
#: kernel's own pauses between tries.
RETRY_SECONDS = 4.0
COMMAND_SECONDS = 30.0
#: How long the copy of a small file to a host may take, and what a larger one brings in a second at
#: least: 2 Mbit. A QEMU has some 100 MB.
COPY_SECONDS, SLOWEST_COPY = 120.0, 250_000
#: What timeout(1) with --verbose says when it ends a command. Its status alone may be the
#: command's own.
_TIMED_OUT = re.compile(rb"^timeout: .*\b(TERM|KILL)\b", re.MULTILINE)

# paramiko logs tracebacks of failures that are reported here as errors of this module.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class LinkLostError(LabError):
    """The SSH link dropped during an operation, or no answer came. What the operation did on the
    host is unknown."""


class CommandFailedError(LabError):
    """A command on a host ended with a status other than 0, or did not end in time."""

    def __init__(self, message: str, completed: Completed | None = None) -> None:
        super().__init__(message)
        self.completed = completed


class SessionsTakenError(LabError):
    """sshd refuses further sessions on the connection, and none became free in time."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            fix="raise MaxSessions in the host's sshd_config (its default, 10, is enough)",
        )


@dataclass(frozen=True)
class Completed:
    """How a command ended. The status of one that a signal ended is 128 and its number."""

    command: str
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


class Connection:
    """A link that connects on first use and again after a loss. Safe to use from threads."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._link: Link | None = None
        self._answered = False  # a host that has answered once is given time to come back
        self._reconnect_seconds = RECONNECT_SECONDS
        self._failed: UnreachableError | None = None
        self._again = 0.0  # when to try again after that
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # to ask for a session again
        self._relays: list[Relay] = []

    @classmethod
    @contextmanager
    def to(cls, target: Target) -> Iterator[Connection]:
        """Yield an open connection. Raises LabError that says why the host cannot be used."""
        connection = cls(target)
        try:
            connection._transport()
            yield connection
        finally:
            connection.close()

    def close(self) -> None:
        with self._lock:
            for relay in self._relays:
                relay.close()
            self._relays.clear()
            if self._link:
                self._link.close()
                self._link = None

    # -- the link --------------------------------------------------------------------------

    def _transport(self) -> Transport:
        """Return the open link's transport, connecting if there is none. Raises LabError."""
        with self._lock:
            if self._link and not self._link.transport.is_active():
                self._link.close()
                self._link = None
            if self._link is None:
                self._link = self._reconnect() if self._answered else Link.open(self.target)
                self._answered = True
            return self._link.transport

    def _reconnect(self) -> Link:
        """Connect again. A try that has failed is not repeated for as long as it took: whoever
        ends a test on a silent host has a dozen operations left, and each would wait as long."""
        if self._failed and time.monotonic() < self._again:
            raise UnreachableError(self._failed.message, fix=self._failed.fix) from self._failed
        started = time.monotonic()
        try:
            link = self._retry()
        except UnreachableError as problem:
            ended = time.monotonic()
            self._failed, self._again = problem, ended + (ended - started)
            raise
        self._failed = None
        return link

    def _retry(self) -> Link:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(UnreachableError),
            stop=tenacity.stop_after_delay(self._reconnect_seconds),
            wait=tenacity.wait_exponential(multiplier=0.1, max=2),
            reraise=True,
        )
        # If the host does not come back in time, later operations try once, without waiting.
        self._reconnect_seconds = 0.0
        link = retrying(Link.open, self.target, RETRY_SECONDS)
        self._reconnect_seconds = RECONNECT_SECONDS
        return link

    def _lost(self, doing: str, transport: Transport, problem: Exception) -> LinkLostError:
        """Return the error for an operation that failed with the link."""
        silence = transport.silence
        why = f"the host has not answered for {silence:.0f} s" if silence else repr(problem)
        return LinkLostError(
            f"link to {self.target.known_as} lost while {doing}: {why}",
            fix="check the host and the network; the next operation connects again",
        )

    def _drop_silent(self, doing: str, transport: Transport, problem: Exception) -> None:
        """Drop the link and raise LinkLostError if it was the host that did not answer in time."""
        if transport.silence:
            transport.close()
            raise self._lost(doing, transport, problem) from problem

    def _open(
        self, doing: str, opener: Callable[[Transport], paramiko.Channel]
    ) -> tuple[Transport, paramiko.Channel]:
        """Return the link's transport and a channel that `opener` opens on it. Raises
        paramiko.ChannelException when the host refuses it, LinkLostError when it does not answer.
        """
        transport = self._transport()
        try:
            return transport, opener(transport)
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, OSError, EOFError) as problem:
            # sshd answers at once. A link on which it does not is of no use.
            transport.close()
            raise self._lost(doing, transport, problem) from problem

    # -- commands --------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = COMMAND_SECONDS,
        stdin: bytes = b"",
        check: bool = True,
    ) -> Completed:
        """Run a command (a list is quoted for the shell) and wait for its end.

        `timeout` in seconds holds here and on the host, where coreutils' timeout(1) ends the
        command; when sshd's sessions are all in use, the command waits as long for one. Raises
        CommandFailedError when the command does not end in time, and, unless `check` is False,
        when its status is not 0; LinkLostError when the link drops; SessionsTakenError.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        doing = f"running `{line}`"
        bounded = f"exec timeout -v -k 2 {math.ceil(timeout)} sh -c {shlex.quote(line)}"
        transport, channel = self._session(doing, timeout)
        try:
            channel.exec_command(bounded)
            completed = _collect(channel, line, stdin, time.monotonic() + timeout + 5)
        except TimeoutError as problem:
            self._drop_silent(doing, transport, problem)
            raise CommandFailedError(
                f"`{line}` on {self.target.known_as} did not end in time, and the host's "
                f"timeout(1) did not end it: {problem}"
            ) from None
        except (paramiko.SSHException, OSError, EOFError) as problem:
            raise self._lost(doing, transport, problem) from problem
        finally:
            close(channel)
        if completed.status == -1:
            raise self._lost(doing, transport, EOFError("no exit status"))
        if completed.status in (124, 137) and _TIMED_OUT.search(completed.stderr):
            raise CommandFailedError(
                f"`{line}` on {self.target.known_as} did not end within {timeout:.0f} s", completed
            )
        if check and completed.status != 0:
            said = (completed.stderr or completed.stdout).decode(errors="replace").strip()
            raise CommandFailedError(
                f"`{line}` on {self.target.known_as} ended with status {completed.status}: {said}",
                completed,
            )
        return completed

    def _session(self, doing: str, seconds: float) -> tuple[Transport, paramiko.Channel]:
        """Return a session channel; if sshd allows no further one, wait until one is free."""

        def attempt() -> tuple[Transport, paramiko.Channel] | None:
            try:
                return self._open(doing, lambda link: link.open_session(timeout=CONNECT_SECONDS))
            except paramiko.ChannelException:
                return None

        opened = attempt()
        if opened is not None:
            return opened
        end = time.monotonic() + seconds
        # One thread asks again at a time; the others wait for their turn.
        turn = self._turn.acquire(timeout=seconds)
        try:
            return wait_for(
                f"one of the sessions that the sshd of {self.target.known_as} allows on a "
                f"connection (MaxSessions), {doing}",
                attempt if turn else lambda: None,
                deadline=max(0.0, end - time.monotonic()),
                interval=0.1,
                error=SessionsTakenError,
                last_seen=lambda: "refused",
            )
        finally:
            if turn:
                self._turn.release()

    # -- files -----------------------------------------------------------------------------

    def read_file(self, path: str, *, offset: int = 0, timeout: float = 60.0) -> bytes:
        """Return a file's content from byte `offset` on; `timeout` is in seconds. Raises
        CommandFailedError if the file cannot be read."""
        return self.run(["tail", "-c", f"+{offset + 1}", path], timeout=timeout).stdout

    def write_file(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Replace a file, whole or not at all. What a copy that was cut off has left beside it is
        removed, and such a copy cannot replace the file later. Raises CommandFailedError."""
        target, beside = shlex.quote(path), shlex.quote(f"{path}.hil-")
        # A link that is cut is the end of the standard input, as is the end of the content.
        self.run(
            f"rm -f -- {beside}?????? && new=$(mktemp -- {beside}XXXXXX) || exit\n"
            """trap 'rm -f -- "$new"' EXIT; trap 'exit 1' HUP INT TERM\n"""
            f"""cat >"$new" && [ "$(stat -c %s -- "$new")" = {len(content)} ] ||"""
            " { echo the copy was cut off >&2; exit 1; }\n"
            f"""chmod {mode:o} -- "$new" && mv -fT -- "$new" {target}""",
            stdin=content,
            timeout=COPY_SECONDS + len(content) / SLOWEST_COPY,
        )

    # -- Unix sockets ----------------------------------------------------------------------

    def unix_socket(self, path: str) -> socket.socket:
        """Return a local socket whose other end is the host's Unix socket `path`.

        OpenSSH's direct-streamlocal channel (PROTOCOL, section 2.4) carries it: no helper runs on
        the host. Raises LabError when nothing listens there.
        """
        _, channel = self._unix_channel(path, f"connecting to {path}")
        near, far = socket.socketpair()
        with self._lock:
            self._relays = [relay for relay in self._relays if relay.thread.is_alive()]
            self._relays.append(Relay(channel, far, path))
        return near

    def _unix_channel(self, path: str, doing: str) -> tuple[Transport, paramiko.Channel]:
        try:
            return self._open(doing, lambda link: link.open_unix_channel(path))
        except paramiko.ChannelException as refused:
            raise LabError(
                f"no connection to {path} on {self.target.known_as}: {refused}",
                fix="check that its process runs and that sshd has AllowStreamLocalForwarding yes",
            ) from refused

    def ask(
        self, path: str, request: Mapping[str, object], *, timeout: float = 15.0
    ) -> dict[str, Any]:
        """Send one JSON line to the host's Unix socket `path` and return the line that it answers;
        `timeout` is in seconds.

        Raises LinkLostError when no whole answer comes in time, LabError when nothing listens
        there or when what answers is not JSON.
        """
        doing = f"asking {path} to {request['do']}"
        transport, channel = self._unix_channel(path, doing)
        try:
            line = _exchange(channel, json.dumps(request).encode() + b"\n", timeout)
        except TimeoutError as problem:
            self._drop_silent(doing, transport, problem)
            raise LinkLostError(
                f"{path} on {self.target.known_as} did not answer {request['do']} within "
                f"{timeout:.0f} s",
                fix="look at the host's processes and kernel log: what serves it is stuck",
            ) from None
        except (paramiko.SSHException, OSError, EOFError) as problem:
            raise self._lost(doing, transport, problem) from problem
        finally:
            close(channel)
        if not line.endswith(b"\n"):
            if not transport.is_active():
                raise self._lost(doing, transport, EOFError("no whole answer"))
            raise LinkLostError(
                f"{path} on {self.target.known_as} was closed before it answered {request['do']}",
                fix="look at the host's processes and kernel log: what serves it has ended",
            )
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as problem:
            raise LabError(
                f"{path} on {self.target.known_as} answered {request['do']} with what is not "
                f"JSON: {line[:100]!r}",
                fix="check that the process that serves it is the harness's own",
            ) from problem
        return answer


def _exchange(channel: paramiko.Channel, request: bytes, seconds: float) -> bytes:
    """Send a request and return the line that comes, which is cut off if the channel ends before.
    Raises TimeoutError."""
    end = time.monotonic() + seconds
    channel.settimeout(seconds)
    channel.sendall(request)
    line = b""
    while not line.endswith(b"\n"):
        channel.settimeout(max(0.0, end - time.monotonic()))
        more = channel.recv(CHUNK_BYTES)
        if not more:
            break
        line += more
    return line


def _collect(channel: paramiko.Channel, line: str, stdin: bytes, end: float) -> Completed:
    """Feed standard input and read both outputs until the command ends; `end` is a time of the
    monotonic clock. Raises TimeoutError when the command does not end by then."""
    stdout, stderr, todo = bytearray(), bytearray(), memoryview(stdin)
    if not todo:
        channel.shutdown_write()
    while not (channel.closed or channel.eof_received):
        if time.monotonic() > end:
            raise TimeoutError("its output is open")
        if todo and channel.send_ready():
            todo = todo[channel.send(bytes(todo[:CHUNK_BYTES])) :]
            if not todo:
                channel.shutdown_write()
        _drain(channel, stdout, stderr)
        # select() cannot wait for room in the channel's window; look again soon.
        select.select([channel], [], [], 0.005 if todo else 0.2)
    _drain(channel, stdout, stderr)
    if not channel.status_event.wait(max(0, end - time.monotonic())):
        raise TimeoutError("it has closed its output")
    _drain(channel, stdout, stderr)
    return Completed(line, channel.exit_status, bytes(stdout), bytes(stderr))


def _drain(channel: paramiko.Channel, stdout: bytearray, stderr: bytearray) -> None:
    while channel.recv_ready():
        stdout += channel.recv(CHUNK_BYTES)
    while channel.recv_stderr_ready():
        stderr += channel.recv_stderr(CHUNK_BYTES)
