"""One SSH link to a lab host: commands, files, and the host's Unix sockets.

The link may drop and come back: an operation during which it drops raises `LinkLostError`, and the
next operation connects again. Host keys are always checked.
"""

from __future__ import annotations

import json
import logging
import math
import select
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
import tenacity

from harness.errors import LabError
from harness.host.channels import CHUNK_BYTES, CONNECT_SECONDS, Relay, Transport, close

RECONNECT_SECONDS = 30.0
COMMAND_SECONDS = 30.0

# paramiko logs tracebacks of failures that are reported here as errors of this module.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class LinkLostError(LabError):
    """The SSH link dropped during an operation. What the operation did on the host is unknown."""


class CommandFailedError(LabError):
    """A command on a host ended with a status other than 0, or did not end in time."""

    def __init__(self, message: str, completed: Completed | None = None) -> None:
        super().__init__(message)
        self.completed = completed


@dataclass(frozen=True)
class Target:
    """Where a host's sshd is and how to log in. Paths are on this machine."""

    address: str
    port: int
    user: str
    key: Path
    known_hosts: Path

    @property
    def known_as(self) -> str:
        """Return the host's name in known_hosts (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"

    def command_line(self, *more: str) -> list[str]:
        """Return the `ssh` command line with which a person reaches the same host under the same
        rules; `more` is the command to run there."""
        options = ("StrictHostKeyChecking=yes", f"UserKnownHostsFile={self.known_hosts}")
        out = ["ssh", "-i", str(self.key), "-p", str(self.port)]
        for option in options:
            out += ["-o", option]
        return [*out, f"{self.user}@{self.address}", *more]


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

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
        self._client: paramiko.SSHClient | None = None
        self._answered = False  # a host that has answered once is given time to come back
        self._reconnect_seconds = RECONNECT_SECONDS
        self._lock = threading.Lock()
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
            if self._client:
                self._client.close()
                self._client = None

    # -- the link --------------------------------------------------------------------------

    def _transport(self) -> Transport:
        with self._lock:
            transport = self._client.get_transport() if self._client else None
            if transport is None or not transport.is_active():
                if self._client:
                    self._client.close()
                self._client = self._reconnect() if self._answered else _connect(self.target)
                self._answered = True
                transport = self._client.get_transport()
            assert isinstance(transport, Transport)
            return transport

    def _reconnect(self) -> paramiko.SSHClient:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(UnreachableError),
            stop=tenacity.stop_after_delay(self._reconnect_seconds),
            wait=tenacity.wait_exponential(multiplier=0.1, max=2),
            reraise=True,
        )
        # If the host does not come back in time, later operations try once, without waiting.
        self._reconnect_seconds = 0.0
        client = retrying(_connect, self.target)
        self._reconnect_seconds = RECONNECT_SECONDS
        return client

    def _lost(self, doing: str, problem: Exception) -> LinkLostError:
        return LinkLostError(f"link to {self.target.known_as} lost while {doing}: {problem!r}")

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
        command. Raises CommandFailedError when the command does not end in time, and, unless
        `check` is False, when its status is not 0; LinkLostError when the link drops.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        bounded = f"exec timeout -k 2 {math.ceil(timeout)} sh -c {shlex.quote(line)}"
        transport = self._transport()
        try:
            channel = transport.open_session(timeout=CONNECT_SECONDS)
            try:
                channel.exec_command(bounded)
                completed = _collect(channel, line, stdin, time.monotonic() + timeout + 5)
            finally:
                close(channel)
        except (paramiko.SSHException, OSError, EOFError) as problem:
            raise self._lost(f"running `{line}`", problem) from problem
        if completed.status == -1:
            raise self._lost(f"running `{line}`", EOFError("no exit status"))
        if completed.status in (124, 137):
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

    # -- files -----------------------------------------------------------------------------

    def read_file(self, path: str, *, offset: int = 0, timeout: float = 60.0) -> bytes:
        """Return a file's content from byte `offset` on; `timeout` is in seconds. Raises
        CommandFailedError if the file cannot be read."""
        return self.run(["tail", "-c", f"+{offset + 1}", path], timeout=timeout).stdout

    def write_file(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Replace a file atomically. Raises CommandFailedError."""
        new = shlex.quote(f"{path}.new")
        self.run(
            f"cat >{new} && chmod {mode:o} {new} && mv {new} {shlex.quote(path)}",
            stdin=content,
            timeout=120,
        )

    # -- Unix sockets ----------------------------------------------------------------------

    def unix_socket(self, path: str) -> socket.socket:
        """Return a local socket whose other end is the host's Unix socket `path`.

        OpenSSH's direct-streamlocal channel (PROTOCOL, section 2.4) carries it: no helper runs on
        the host. Raises LabError when nothing listens there.
        """
        try:
            channel = self._transport().open_unix_channel(path)
        except paramiko.ChannelException as refused:
            raise LabError(
                f"no connection to {path} on {self.target.known_as}: {refused}",
                fix="check that its process runs and that sshd has AllowStreamLocalForwarding yes",
            ) from refused
        except (paramiko.SSHException, OSError, EOFError) as problem:
            raise self._lost(f"connecting to {path}", problem) from problem
        near, far = socket.socketpair()
        with self._lock:
            self._relays = [relay for relay in self._relays if relay.thread.is_alive()]
            self._relays.append(Relay(channel, far, path))
        return near

    def ask(
        self, path: str, request: Mapping[str, object], *, timeout: float = 15.0
    ) -> dict[str, Any]:
        """Send one JSON line to the host's Unix socket `path` and return the line that it answers;
        `timeout` is in seconds.

        Raises LinkLostError when no answer comes in time, LabError when nothing listens there.
        """
        with self.unix_socket(path) as sock:
            sock.settimeout(timeout)
            try:
                sock.sendall(json.dumps(request).encode() + b"\n")
                with sock.makefile("rb") as stream:
                    line = stream.readline()
            except OSError as problem:
                raise LinkLostError(
                    f"link lost while asking {path} to {request['do']}: {problem!r}"
                ) from problem
        if not line:
            raise LinkLostError(f"{path} was closed before it answered {request['do']}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class UnreachableError(LabError):
    """Nothing answered as an SSH server in time; trying again may help."""


def _connect(target: Target) -> paramiko.SSHClient:
    for path, what in ((target.key, "key"), (target.known_hosts, "known_hosts")):
        if not path.is_file():
            raise LabError(
                f"host {target.known_as}: {what} file {path} does not exist",
                fix=f"correct `{what}` of this host in the inventory",
            )
    try:
        key = paramiko.PKey.from_path(target.key)
    except (paramiko.SSHException, ValueError, TypeError) as problem:
        raise LabError(
            f"host {target.known_as}: {target.key} is not a usable private key: {problem}",
            fix="name an OpenSSH private key without a passphrase as `key` in the inventory",
        ) from None
    client = paramiko.SSHClient()
    client.load_host_keys(str(target.known_hosts))
    client.set_missing_host_key_policy(_RefuseUnknown(target))
    try:
        client.connect(
            target.address,
            target.port,
            target.user,
            pkey=key,
            timeout=CONNECT_SECONDS,
            banner_timeout=CONNECT_SECONDS,
            auth_timeout=CONNECT_SECONDS,
            channel_timeout=CONNECT_SECONDS,
            allow_agent=False,
            look_for_keys=False,
            transport_factory=_make_transport,
        )
    except paramiko.BadHostKeyException as changed:
        client.close()
        raise LabError(
            f"host {target.known_as} shows another key ({_fingerprint(changed.key)}) than "
            f"{target.known_hosts} has ({_fingerprint(changed.expected_key)})",
            fix="if the machine was installed anew, remove the old key with "
            f"`ssh-keygen -f {target.known_hosts} -R '{target.known_as}'` and add the new one; "
            "if not, do not connect: another machine answers at this address",
        ) from None
    except paramiko.AuthenticationException as refused:
        client.close()
        raise LabError(
            f"host {target.known_as} refuses user {target.user} with key {target.key}: {refused}",
            fix="put the key's public half into that user's authorized_keys, "
            "or correct `user` and `key` in the inventory",
        ) from None
    except (paramiko.SSHException, OSError, EOFError) as problem:
        client.close()
        raise UnreachableError(
            f"host {target.known_as} is not reachable over SSH: {problem}",
            fix="check address and port in the inventory, and that the host is up "
            "(a virtual one: `hil lab status`)",
        ) from problem
    except BaseException:
        client.close()
        raise
    transport = client.get_transport()
    assert transport is not None
    transport.set_keepalive(5)
    return client


def _make_transport(sock: Any, **options: Any) -> paramiko.Transport:
    return Transport(sock, **options)


def _fingerprint(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.fingerprint}"


class _RefuseUnknown(paramiko.MissingHostKeyPolicy):
    def __init__(self, target: Target) -> None:
        self.target = target

    def missing_host_key(self, client: object, hostname: str, key: paramiko.PKey) -> None:
        raise LabError(
            f"host {self.target.known_as} is not in {self.target.known_hosts}; "
            f"it shows {_fingerprint(key)}",
            fix="compare that key with the one on the machine's console; if they are the same, "
            "add this line: "
            f"{self.target.known_as} {key.get_name()} {key.get_base64()}",
        )


def _collect(channel: paramiko.Channel, line: str, stdin: bytes, end: float) -> Completed:
    """Feed standard input and read both outputs until the command ends; `end` is a time of the
    monotonic clock. Raises CommandFailedError when the command does not end by then."""
    stdout, stderr, todo = bytearray(), bytearray(), memoryview(stdin)
    if not todo:
        channel.shutdown_write()
    while not (channel.closed or channel.eof_received):
        if time.monotonic() > end:
            raise CommandFailedError(
                f"`{line}` did not end in time, and the host's timeout(1) did not end it"
            )
        if todo and channel.send_ready():
            todo = todo[channel.send(bytes(todo[:CHUNK_BYTES])) :]
            if not todo:
                channel.shutdown_write()
        _drain(channel, stdout, stderr)
        # select() cannot wait for room in the channel's window; look again soon.
        select.select([channel], [], [], 0.005 if todo else 0.2)
    _drain(channel, stdout, stderr)
    if not channel.status_event.wait(max(0, end - time.monotonic())):
        raise CommandFailedError(f"`{line}` closed its output but did not end in time")
    _drain(channel, stdout, stderr)
    return Completed(line, channel.exit_status, bytes(stdout), bytes(stderr))


def _drain(channel: paramiko.Channel, stdout: bytearray, stderr: bytearray) -> None:
    while channel.recv_ready():
        stdout += channel.recv(CHUNK_BYTES)
    while channel.recv_stderr_ready():
        stderr += channel.recv_stderr(CHUNK_BYTES)
