"""The architecture of the machine that builds artifacts and runs virtual hosts.

Only what runs on this machine depends on it: QEMU, compilers. What is built is AArch64 everywhere,
and a virtual host is emulated (TCG) everywhere, also on an AArch64 machine that has KVM: it needs
an EL2 of its own, and SMMUs with both stages.
"""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass

from harness.errors import LabError

#: What the names of compiler and linker for AArch64 begin with. Debian has them under these names
#: on AArch64 machines as well, where they are the machine's own.
CROSS_COMPILE = "aarch64-linux-gnu-"


@dataclass(frozen=True)
class Architecture:
    """An architecture on which artifacts can be built. `name` is Debian's. Its libraries are in
    /usr/lib/TRIPLET, and so is `loader`, which starts programs. `compiler` is the package of the
    compiler for AArch64, and `libc` that of `libc_file`, the C library of static programs. `make
    setup` installs both packages."""

    name: str
    triplet: str
    loader: str
    compiler: str
    libc: str
    libc_file: str


KNOWN = {
    one.name: one
    for one in (
        Architecture(
            name="amd64",
            triplet="x86_64-linux-gnu",
            loader="ld-linux-x86-64.so.2",
            compiler="gcc-aarch64-linux-gnu",
            libc="libc6-dev-arm64-cross",
            libc_file="/usr/aarch64-linux-gnu/lib/libc.a",
        ),
        Architecture(
            name="arm64",
            triplet="aarch64-linux-gnu",
            loader="ld-linux-aarch64.so.1",
            compiler="gcc",
            libc="libc6-dev",
            libc_file="/usr/lib/aarch64-linux-gnu/libc.a",
        ),
    )
}


#: Says which machines will do.
NEEDED = f"Debian for {' or '.join(KNOWN)}"
FIX = "use such a machine; hosts that are not virtual do not need it"


@functools.cache
def name() -> str:
    """Return Debian's name of the architecture of this machine's programs, which its kernel's need
    not be; on other systems some other words."""
    try:
        asked = ["dpkg", "--print-architecture"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"{os.uname().machine}, and not Debian"


def here() -> Architecture:
    """Return this machine's architecture. Raises LabError when artifacts cannot be built on it."""
    if name() not in KNOWN:
        raise LabError(f"a virtual host needs {NEEDED} (this is {name()})", fix=FIX)
    return KNOWN[name()]
