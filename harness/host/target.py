"""Where a host's sshd is and how to log in, and the `ssh` command line that says the same."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = rf"{_LABEL}(?:\.{_LABEL})*\.?"
_IPV6 = r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9_.-]+)?"
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*\$?"
#: A host name as DNS has it (labels of 1 to 63 bytes, RFC 1035), or an IP address.
ADDRESS = rf"^(?:{_NAME}|{_IPV6})$"
LONGEST_ADDRESS = 253
USER = rf"^{_USER}$"
_PORT = r"[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
#: [USER@]HOST[:PORT], with an IPv6 address in brackets, as ssh(1) has it for -J.
JUMP = rf"^(?:({_USER})@)?(?:({_NAME})|\[({_IPV6})\])(?::({_PORT}))?$"


@dataclass(frozen=True)
class Target:
    """Where a host's sshd is and how to log in. Paths are on this machine.

    `key` is a private key. With `agent`, the ssh-agent's keys are used, and `key`, which may then
    be a public one, says which of them. The passphrase of `key` is in a file or in an environment
    variable, or is asked for. `jumps` are the hosts to go through, the nearest first.
    `ssh_config` is the file that the address, known there as `alias`, was found in.
    """

    address: str
    port: int
    user: str
    key: Path | None
    known_hosts: Path
    agent: bool = False
    passphrase_file: Path | None = None
    passphrase_env: str | None = None
    jumps: tuple[Target, ...] = ()
    proxy_command: str | None = None
    ssh_config: Path | None = None
    alias: str | None = None

    @property
    def known_as(self) -> str:
        """Return the host's name in known_hosts (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"

    def command_line(self, *command: str, tty: bool = False) -> list[str]:
        """Return the `ssh` command line with which a person reaches the same host under the same
        rules. `command` is to run there; `tty` gives it a terminal."""
        return self._ssh(*(["-t"] if tty else []), then=command)

    def _ssh(self, *more: str, then: tuple[str, ...] = ()) -> list[str]:
        """Return the command line with `more` options and the command `then`."""
        out = ["ssh", "-F", str(self.ssh_config.absolute()) if self.ssh_config else "none"]
        for option in self._options():
            out += ["-o", option]
        out += ["-p", str(self.port), "-l", self.user, *more]
        return [*out, "--", self.alias or self.address, *then]

    def _options(self) -> list[str]:
        """Return what `ssh` takes with -o (ssh_config(5))."""
        options = [
            "StrictHostKeyChecking=yes",
            f"UserKnownHostsFile={_path(self.known_hosts)}",
            "GlobalKnownHostsFile=/dev/null",
            "PreferredAuthentications=publickey",
        ]
        if self.key:
            options += ["IdentitiesOnly=yes", f"IdentityFile={_path(self.key)}"]
        if not self.agent:
            options.append("IdentityAgent=none")
        if self.alias:
            options.append(f"HostName={_literal(self.address)}")
        if self.jumps:
            # Not ProxyJump: the ssh that it starts would not get these options.
            *before, last = self.jumps
            through = replace(last, jumps=tuple(before))._ssh("-W", self._forward)
            options.append(f"ProxyCommand={_literal(shlex.join(through))}")
        elif self.proxy_command:
            options.append(f"ProxyCommand={_literal(self.proxy_command)}")
        return options

    @property
    def _forward(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


def _literal(text: str) -> str:
    """Return a text as `ssh` takes it where it expands tokens such as %h."""
    return text.replace("%", "%%")


def _path(path: Path) -> str:
    """Return a path as one word of an option of `ssh`."""
    text = _literal(str(path.absolute()))
    if re.fullmatch(r"[\w@%+=:,./~-]+", text, re.ASCII):
        return text
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'
