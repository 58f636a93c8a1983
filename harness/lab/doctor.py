"""Check whether this machine has what building and running a virtual lab needs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

#: The Debian package of each command. `make setup` installs these packages.
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    # mmdebstrap needs these two where it is not run as root.
    "fakeroot": "fakeroot",
    "fakechroot": "fakechroot",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "make": "make",
    "gcc": "gcc",
    "bison": "bison",
    "flex": "flex",
    "bc": "bc",
    "xz": "xz-utils",
    "mkfs.erofs": "erofs-utils",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    # npm installs Allure, which makes the reports.
    "npm": "npm",
}
FILES = {
    "/usr/include/openssl/ssl.h": "libssl-dev",
    "/usr/include/libelf.h": "libelf-dev",
    "/usr/aarch64-linux-gnu/lib/libc.a": "libc6-dev-arm64-cross",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}

MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class Check:
    """One need: what it is, whether it is met, and what to do if not."""

    what: str
    met: bool
    fix: str


def checks() -> Iterator[Check]:
    """Yield every need, in the order in which to meet those that are not met."""
    yield Check(
        f"Python 3.11 or newer (this is {sys.version.split()[0]})",
        sys.version_info >= (3, 11),
        "apt-get install python3",
    )
    machine = os.uname().machine
    yield Check(
        f"an x86-64 machine (this is {machine})", machine == "x86_64", "use an x86-64 machine"
    )
    for command, package in TOOLS.items():
        where = shutil.which(command)
        yield Check(f"{command} ({where or 'not in PATH'})", bool(where), _install(package))
    for path, package in FILES.items():
        yield Check(path, Path(path).exists(), _install(package))
    memory = psutil.virtual_memory().available
    yield Check(
        f"4 GiB of memory available ({memory / (1 << 30):.1f} GiB)",
        memory >= MEMORY_BYTES,
        "end other programs, or give the virtual host less memory: memory_mib in the inventory",
    )


def _install(package: str) -> str:
    return f"apt-get install {package}"
