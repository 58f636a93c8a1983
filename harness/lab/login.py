"""Turn what an inventory, and the ssh_config that it may name, say of a host into where it is and
how to log in."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from harness.errors import LabError
from harness.host import ssh_config
from harness.host.ssh_config import Options
from harness.host.target import JUMP, Target
from harness.lab.inventory import HostEntry

#: A configuration whose jump hosts need each other is a circle.
_MOST_JUMPS = 8


def login(entry: HostEntry) -> Target:
    """Return the target of a host that is not virtual. What the inventory says of it takes
    precedence over its `ssh_config`; what neither says has the inventory's default. Raises LabError
    for an `ssh_config` that cannot be used."""
    # The inventory was checked: such a host has both.
    assert entry.address
    assert entry.known_hosts
    options = _options(entry.ssh_config, entry.address)
    given = entry.model_fields_set
    target = Target(
        options.address,
        entry.port if "port" in given else options.port or entry.port,
        entry.user if "user" in given else options.user or entry.user,
        entry.key or (None if entry.agent else options.key),
        entry.known_hosts,
        agent=entry.agent,
        passphrase_file=entry.passphrase_file,
        passphrase_env=entry.passphrase_env,
        proxy_command=None if entry.proxy_jump else options.proxy_command,
        ssh_config=entry.ssh_config,
        alias=entry.address if entry.ssh_config else None,
    )
    if target.key is None and not target.agent:
        raise LabError(
            f"host {entry.name} has no key: {entry.ssh_config} has no IdentityFile for "
            f"{entry.address}",
            fix="name a private key as `key` in the inventory, or set `agent: true`",
        )
    return replace(target, jumps=_jumps(target, entry.proxy_jump or options.proxy_jump))


def _options(config: Path | None, host: str) -> Options:
    return ssh_config.lookup(config, host) if config else Options(host)


def _jumps(target: Target, written: tuple[str, ...], depth: int = 1) -> tuple[Target, ...]:
    """Return the hosts on the way to a target. A jump host is logged in to as the target is, unless
    the configuration knows better; as for ssh, only the first one may have a way of its own."""
    found: list[Target] = []
    for one in written:
        match = re.fullmatch(JUMP, one)
        if match is None or depth > _MOST_JUMPS:
            raise LabError(
                f"host {target.alias or target.address}: jump host {one!r} cannot be used"
                f"{'' if match is None else ': the way to it is a circle'}",
                fix=f"correct ProxyJump in {target.ssh_config}, or set `proxy_jump` in the "
                "inventory; a jump host is [USER@]HOST[:PORT]",
            )
        user, name, ipv6, port = match.groups()
        host = name or ipv6
        options = _options(target.ssh_config, host)
        jump = replace(
            target,
            address=options.address,
            port=int(port) if port else options.port or 22,
            user=user or options.user or target.user,
            key=(None if target.agent else options.key) or target.key,
            jumps=(),
            proxy_command=None if found else options.proxy_command,
            alias=host if target.ssh_config else None,
        )
        if not found:
            found += _jumps(jump, options.proxy_jump, depth + 1)
        found.append(jump)
    return tuple(found)
