"""What a person's ssh_config(5) says of a host, for inventories that ask for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import paramiko

from harness.errors import LabError
from harness.host.target import ADDRESS, USER


@dataclass(frozen=True)
class Options:
    """What a configuration says of one host; None where it says nothing."""

    address: str
    port: int | None = None
    user: str | None = None
    key: Path | None = None
    proxy_jump: tuple[str, ...] = ()
    proxy_command: str | None = None


def lookup(path: Path, host: str) -> Options:
    """Return HostName, Port, User, IdentityFile (the first that exists), ProxyJump and ProxyCommand
    of a host. Raises LabError when the file cannot be read, or has lines that are not understood.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise LabError(
            f"ssh configuration {path} cannot be read: {problem}",
            fix="correct `ssh_config` in the inventory, or the file",
        ) from None
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*include\b", line, re.IGNORECASE):
            raise LabError(
                f"{path}:{number}: Include is not followed",
                fix="name a file without Include as `ssh_config` in the inventory",
            )
    try:
        said = paramiko.SSHConfig.from_text(text).lookup(host)
        port = int(said["port"]) if "port" in said else None
        if port is not None and not 1 <= port <= 65535:
            raise ValueError(f"{port} is not a port")
    # Match may need a library that is not there, and each keyword fails in its own way.
    except Exception as problem:
        raise LabError(
            f"ssh configuration {path} cannot be used for {host}: {problem}",
            fix="correct the file, or name another one as `ssh_config` in the inventory",
        ) from None
    address, user = said["hostname"], said.get("user")
    for keyword, value, pattern in (("HostName", address, ADDRESS), ("User", user, USER)):
        if value is not None and not re.fullmatch(pattern, value):
            raise LabError(
                f"ssh configuration {path}: {keyword} of {host} is {value!r}, which cannot be one",
                fix="correct the file, or name another one as `ssh_config` in the inventory",
            )
    # paramiko has replaced ~ already.
    keys = [Path(one) for one in said.get("identityfile", [])]
    jump = said.get("proxyjump", "none")
    return Options(
        address,
        port,
        user,
        next((key for key in keys if key.exists()), keys[0] if keys else None),
        () if jump.lower() == "none" else tuple(one.strip() for one in jump.split(",")),
        said.get("proxycommand"),
    )
