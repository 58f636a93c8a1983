"""The keys by which this machine logs in to a host: files, with passphrases or without, and the
ssh-agent's."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import shlex
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
from paramiko.agent import SSH2_AGENT_IDENTITIES_ANSWER, cSSH2_AGENTC_REQUEST_IDENTITIES
from paramiko.pkey import PublicBlob, UnknownKeyType

from harness.errors import LabError
from harness.host.target import Target
from harness.secret import others_can_read

#: How long the ssh-agent may take to tell its keys.
AGENT_SECONDS = 15.0
#: The passphrases that a person has typed, by key.
_typed: dict[Path, bytes] = {}
_typing = threading.Lock()


@contextlib.contextmanager
def identities(target: Target) -> Iterator[list[paramiko.PKey]]:
    """Yield the keys to log in with. The agent's can be used inside the context only. Raises
    LabError."""
    if not target.agent:
        yield [_private(target)]
        return
    agent = _agent(target)
    try:
        yield _chosen(target, agent.get_keys())
    finally:
        agent.close()


# -- the agent ---------------------------------------------------------------------------------


class _Agent(paramiko.Agent):
    """The ssh-agent. paramiko's own client waits for an agent without end, and fails at a key whose
    comment is not UTF-8."""

    def _connect(self, conn: socket.socket) -> None:
        self._conn = conn
        conn.settimeout(AGENT_SECONDS)
        kind, said = self._send_message(  # type: ignore[attr-defined]
            cSSH2_AGENTC_REQUEST_IDENTITIES
        )
        # To sign may take longer: the agent may ask a person. The log-in has a limit of its own.
        conn.settimeout(None)
        if kind != SSH2_AGENT_IDENTITIES_ANSWER:
            raise paramiko.SSHException("it tells no keys")
        self._keys = tuple(
            paramiko.AgentKey(self, said.get_binary(), said.get_string().decode(errors="replace"))
            for _ in range(said.get_int())
        )


def _agent(target: Target) -> paramiko.Agent:
    where = os.environ.get("SSH_AUTH_SOCK")
    fix = "start an ssh-agent, add the key with `ssh-add`, and export SSH_AUTH_SOCK to this program"
    if not where:
        raise LabError(
            f"host {target.known_as} is used with an ssh-agent, and SSH_AUTH_SOCK is not set",
            fix=fix,
        )
    try:
        agent = _Agent()
        keys = agent.get_keys()
    except (paramiko.SSHException, OSError) as problem:
        raise LabError(f"the ssh-agent at {where} does not answer: {problem}", fix=fix) from None
    if not keys:
        raise LabError(f"the ssh-agent at {where} does not answer or has no keys", fix=fix)
    return agent


def _chosen(target: Target, offered: tuple[paramiko.AgentKey, ...]) -> list[paramiko.PKey]:
    """Return those of the agent's keys that the target names; all if it names none. What the agent
    does not have is read from the file."""
    if target.key is None:
        return list(offered)
    _check(target, target.key, "key")
    public = _public_half(target.key)
    found: list[paramiko.PKey] = [key for key in offered if public in (key.blob, key.asbytes())]
    if found:
        return found
    if _is_private(target.key):
        return [_private(target)]
    raise LabError(
        f"host {target.known_as}: the ssh-agent does not have key {target.key}",
        fix="add the private key with `ssh-add`, or correct `key` in the inventory",
    )


def _public_half(key: Path) -> bytes | None:
    """Return the public key in a file, or in the .pub file beside it, as SSH has it on the wire."""
    for path in (key, key.with_name(f"{key.name}.pub")):
        with contextlib.suppress(OSError, ValueError):
            return PublicBlob.from_file(path).key_blob
    return None


# -- files -------------------------------------------------------------------------------------


def _is_private(key: Path) -> bool:
    with contextlib.suppress(OSError):
        return b"PRIVATE KEY-----" in key.read_bytes()[:4096]
    return False


def _private(target: Target) -> paramiko.PKey:
    """Return the key in the file that the target names, with the certificate beside it if there is
    one. Raises LabError."""
    path = target.key
    if path is None:
        raise LabError(
            f"host {target.known_as} has no key",
            fix="name a private key as `key` in the inventory, or set `agent: true`",
        )
    _check(target, path, "key")
    if not _is_private(path):
        raise _unusable(target, path, "it has no line BEGIN … PRIVATE KEY")
    _check_mode(target, path, "key")
    try:
        return _read(path, None)
    except TypeError:  # it is encrypted
        pass
    except (paramiko.SSHException, UnknownKeyType, ValueError, OSError) as problem:
        raise _unusable(target, path, str(problem)) from None
    passphrase, source = _passphrase(target, path)
    try:
        return _read(path, passphrase)
    except (paramiko.SSHException, UnknownKeyType, ValueError, TypeError) as problem:
        with _typing:
            _typed.pop(path, None)
        raise LabError(
            f"host {target.known_as}: key {path} cannot be read with the passphrase of {source}: "
            f"{problem}",
            fix=f"correct the passphrase; `ssh-keygen -y -f {shlex.quote(str(path))}` tries one",
        ) from None


def _read(path: Path, passphrase: bytes | None) -> paramiko.PKey:
    # paramiko says that a passphrase is a text, but cryptography, which gets it, takes bytes only.
    return paramiko.PKey.from_path(path, passphrase)  # type: ignore[arg-type]


def _unusable(target: Target, path: Path, why: str) -> LabError:
    return LabError(
        f"host {target.known_as}: {path} is not a usable private key: {why}",
        fix="name an OpenSSH private key (ed25519, ECDSA or RSA) as `key` in the inventory",
    )


def _check(target: Target, path: Path, field: str) -> None:
    """Raise LabError unless a file that the inventory names as `field` can be read."""
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        raise LabError(
            f"host {target.known_as}: {field} file {path} does not exist",
            fix=f"correct `{field}` of this host in the inventory",
        ) from None
    except OSError as problem:
        raise LabError(
            f"host {target.known_as}: {field} file {path} cannot be read: {problem.strerror}",
            fix=f"let this user read the file, or name another one as `{field}` in the inventory",
        ) from None


def _check_mode(target: Target, path: Path, field: str) -> None:
    """Raise LabError if others can read this user's secret file, as ssh(1) refuses one."""
    if others_can_read(path):
        raise LabError(
            f"host {target.known_as}: others can read {field} file {path} "
            f"(mode {stat.S_IMODE(path.stat().st_mode):04o})",
            fix=f"run `chmod 600 {shlex.quote(str(path))}`; if others have read the secret, "
            "replace it",
        )


# -- passphrases -------------------------------------------------------------------------------


def _passphrase(target: Target, path: Path) -> tuple[bytes, str]:
    """Return the passphrase of a key, and where it is from. Raises LabError when there is none."""
    if target.passphrase_file:
        _check(target, target.passphrase_file, "passphrase_file")
        _check_mode(target, target.passphrase_file, "passphrase_file")
        lines = target.passphrase_file.read_bytes().splitlines()
        return lines[0] if lines else b"", f"file {target.passphrase_file}"
    if target.passphrase_env:
        value = os.environb.get(target.passphrase_env.encode())
        if value is None:
            raise LabError(
                f"host {target.known_as}: the environment has no variable {target.passphrase_env}",
                fix=f"set it to the passphrase of key {path}, or correct `passphrase_env` in the "
                "inventory",
            )
        return value, f"environment variable {target.passphrase_env}"
    with _typing:
        if path not in _typed:
            _typed[path] = _ask(target, path)
        return _typed[path], "the terminal"


def _ask(target: Target, path: Path) -> bytes:
    """Ask the person at the terminal. Raises LabError when there is none."""
    with contextlib.suppress(OSError, EOFError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            # A program in the background would be stopped, and several would ask at once.
            if os.tcgetpgrp(terminal) == os.getpgrp():
                fcntl.flock(terminal, fcntl.LOCK_EX)
                return getpass.getpass(f"Passphrase of key {path}: ").encode()
        finally:
            os.close(terminal)
    raise LabError(
        f"host {target.known_as}: key {path} has a passphrase, and no terminal gives it",
        fix="add the key to an ssh-agent and set `agent: true` in the inventory, or name what has "
        "the passphrase as `passphrase_file` or `passphrase_env`",
    )
