"""One SSH link to a host, or through others: connected, its host key checked, and logged in."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import paramiko

from harness.errors import LabError
from harness.host.channels import CONNECT_SECONDS, SILENT_SECONDS, Transport
from harness.host.identity import identities
from harness.host.known_hosts import KnownHosts
from harness.host.target import Target


class UnreachableError(LabError):
    """Nothing answered as an SSH server in time; trying again may help."""


class Link:
    """An open link. Closing it also closes what it goes through."""

    def __init__(self, transport: Transport, opened: contextlib.ExitStack) -> None:
        self.transport = transport
        self._opened = opened

    @classmethod
    def open(cls, target: Target, seconds: float = CONNECT_SECONDS) -> Link:
        """Open a link; a host is given so many seconds to accept the TCP connection.

        Raises UnreachableError when a host on the way does not answer as an SSH server, and
        LabError when one must not be used or does not let us in.
        """
        with contextlib.ExitStack() as opened:
            through: Transport | None = None
            for hop in target.jumps:
                try:
                    through = opened.enter_context(_hop(hop, through, seconds))
                except LabError as problem:
                    message = f"on the way to host {target.known_as}: {problem.message}"
                    raise type(problem)(message, fix=problem.fix) from problem
            transport = opened.enter_context(_hop(target, through, seconds))
            return cls(transport, opened.pop_all())

    def close(self) -> None:
        self._opened.close()


@contextlib.contextmanager
def _hop(target: Target, through: Transport | None, seconds: float) -> Iterator[Transport]:
    """Yield the transport to one host, and close it afterwards. `through` is that of the host
    before it, if there is one."""
    known = _known_hosts(target)
    with contextlib.ExitStack() as opened:
        # The keys come first: a person who is asked for a passphrase may take longer than sshd
        # waits.
        with identities(target) as keys:
            said = opened.enter_context(tempfile.TemporaryFile())
            try:
                sock = opened.enter_context(_socket(target, through, seconds, said))
                transport = Transport(sock, known.algorithms(target))
                # It has a timer, which the end of this program would wait for.
                opened.callback(transport.packetizer.complete_handshake)
                opened.callback(transport.close)
                transport.banner_timeout = CONNECT_SECONDS
                transport.handshake_timeout = CONNECT_SECONDS
                transport.auth_timeout = CONNECT_SECONDS
                transport.start_client()
                key = transport.get_remote_server_key()
            except (paramiko.SSHException, OSError, EOFError, UnicodeError) as problem:
                raise _unreachable(target, problem, said) from problem
            known.check(target, key)
            _log_in(target, transport, keys)
        transport.watch()
        yield transport


def _known_hosts(target: Target) -> KnownHosts:
    try:
        return KnownHosts.load(target.known_hosts)
    except OSError as problem:
        what = (
            "does not exist"
            if isinstance(problem, FileNotFoundError)
            else f"cannot be read: {problem.strerror}"
        )
        raise LabError(
            f"host {target.known_as}: known_hosts file {target.known_hosts} {what}",
            fix="correct `known_hosts` of this host in the inventory, or the file's mode",
        ) from None


def _unreachable(target: Target, problem: Exception, said: IO[bytes]) -> UnreachableError:
    """Return the error for a host that did not answer; `said` has what a proxy command printed."""
    said.seek(0)
    printed = said.read()[-1000:].decode(errors="replace").strip()
    if isinstance(problem, paramiko.ChannelException):
        return UnreachableError(
            f"host {target.known_as} is not reachable through its jump host: {problem}",
            fix="check address and port in the inventory, that the host is up, and that the jump "
            "host's sshd has AllowTcpForwarding yes",
        )
    why = str(problem) or "it closed the connection, or did not answer in time"
    if target.proxy_command:
        why += f"; its ProxyCommand: `{target.proxy_command}`"
    if printed:
        why += f", which printed: {printed}"
    return UnreachableError(
        f"host {target.known_as} is not reachable over SSH: {why}",
        fix="check address and port in the inventory, and that the host is up "
        "(a virtual one: `hil lab status`)",
    )


# -- the way to the host -----------------------------------------------------------------------


@contextlib.contextmanager
def _socket(
    target: Target, through: Transport | None, seconds: float, said: IO[bytes]
) -> Iterator[Any]:
    """Yield what is connected to a host's sshd: a socket, or a channel of the host before it."""
    if through is not None:
        to, here = (target.address, target.port), ("127.0.0.1", 0)
        channel = through.open_channel("direct-tcpip", to, here, timeout=CONNECT_SECONDS)
        with contextlib.closing(channel):
            yield channel
    elif target.proxy_command:
        with _proxy(target.proxy_command, said) as sock:
            yield sock
    else:
        with socket.create_connection((target.address, target.port), timeout=seconds) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What is sent into a dead link fails then, and not after the kernel's 15 minutes.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENT_SECONDS * 1000))
            yield sock


@contextlib.contextmanager
def _proxy(command: str, said: IO[bytes]) -> Iterator[socket.socket]:
    """Yield a socket whose other end is the standard input and output of a ProxyCommand
    (ssh_config(5)); what it prints as errors goes to `said`."""
    near, far = socket.socketpair()
    with near:
        with far:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                stdin=far.fileno(),
                stdout=far.fileno(),
                stderr=said,
                # Ctrl-C is for this program, which still has to end its session on the host.
                start_new_session=True,
            )
        try:
            yield near
        finally:
            near.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# -- logging in --------------------------------------------------------------------------------


def _log_in(target: Target, transport: Transport, keys: Sequence[paramiko.PKey]) -> None:
    """Log in with the first key that the host accepts. Raises LabError if it accepts none."""
    refused: Exception | None = None
    for key in keys:
        try:
            wanted = transport.auth_publickey(target.user, key)
        except (paramiko.SSHException, OSError, EOFError) as problem:
            # sshd closes the connection after MaxAuthTries keys.
            if refused and not transport.is_active():
                break
            if _answered(transport, problem):
                refused = problem
                continue
            raise UnreachableError(
                f"host {target.known_as} does not answer during the log-in: {problem}",
                fix="look at the log of the host's sshd",
            ) from problem
        if not wanted:
            return
        raise LabError(
            f"host {target.known_as} wants more of user {target.user} than a key: "
            f"{', '.join(wanted)}",
            fix="let this user log in with a key alone (AuthenticationMethods in the host's "
            "sshd_config)",
        )
    what = f"key {target.key}" if target.key else f"the ssh-agent's {len(keys)} keys"
    raise LabError(
        f"host {target.known_as} refuses user {target.user} with {what}: {refused}",
        fix="put the key's public half into that user's authorized_keys, or correct `user` and "
        "`key` in the inventory",
    )


def _answered(transport: Transport, problem: Exception) -> bool:
    """Return whether a host has refused a key, or the agent to sign with it, and the host has
    neither been silent nor gone away."""
    # paramiko has no class for it.
    timed_out = str(problem).startswith("Authentication timeout")
    return isinstance(problem, paramiko.SSHException) and not timed_out and transport.is_active()
