"""Debian packages for the virtual lab: which mirror, which suites, unpacked trees.

Trees are made by mmdebstrap's extract variant: packages are resolved, verified and unpacked,
no maintainer script runs, so a foreign architecture needs no emulation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import urllib.parse
from pathlib import Path

from harness.errors import LabError

SUITE = "trixie"
BACKPORTS = "trixie-backports"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

#: QEMU with vfio-user-pci and a complete accel=on exists from 11.1 on, in backports only.
QEMU_PACKAGES = tuple(
    f"{name}/{BACKPORTS}" for name in ("qemu-system-arm", "qemu-system-common", "qemu-system-data")
)


def mirror() -> str:
    """Base URL of a Debian mirror: `$HIL_DEBIAN_MIRROR`, or the one apt uses here.

    Raises LabError when apt is not set up for Debian.
    """
    chosen = os.environ.get("HIL_DEBIAN_MIRROR")
    if chosen:
        return chosen.rstrip("/")
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in listed.splitlines():
        uri, _, who = line.partition(" ")
        if who.split() == ["Debian", "Debian"]:
            return uri.rstrip("/")
    raise LabError(
        "apt on this machine names no Debian mirror",
        fix="run `apt-get update`, or set HIL_DEBIAN_MIRROR to a mirror's base URL",
    )


def extract(tree: Path, architecture: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Unpack `packages` and what they depend on into `tree`; return their versions.

    Raises LabError with mmdebstrap's last words when a package cannot be had.
    """
    tool = shutil.which("mmdebstrap")
    if tool is None:
        raise LabError("mmdebstrap is missing", fix="run `make setup` (as root or with sudo)")
    sources = "".join(
        f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n" for suite in (SUITE, BACKPORTS)
    )
    with tempfile.TemporaryDirectory(prefix="hil-debian-") as scratch:
        source_list = Path(scratch, "sources.list")
        source_list.write_text(sources)
        ended = subprocess.run(
            [
                tool,
                "--quiet",
                "--variant=extract",
                f"--architectures={architecture}",
                f"--include={','.join(packages)}",
                # The downloaded archives' names say what was resolved; read below.
                "--skip=cleanup/apt/cache",
                SUITE,
                str(tree),
                str(source_list),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode != 0:
        tail = "\n  ".join(ended.stderr.strip().splitlines()[-8:])
        raise LabError(
            f"mmdebstrap could not unpack {', '.join(packages)} ({architecture}):\n  {tail}",
            fix="check that the mirror carries these suites, or set HIL_DEBIAN_MIRROR",
        )
    return _versions(tree)


def program(tree: Path, name: str) -> list[str]:
    """The command line of an amd64 program of an unpacked tree: with the tree's own C library,
    which this machine's may be older than."""
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(libraries), str(tree / "usr/bin" / name)]


def _versions(tree: Path) -> dict[str, str]:
    """Take the versions from the downloaded archives' names, then drop the archives."""
    versions = {}
    for archive in sorted((tree / "var/cache/apt/archives").glob("*.deb")):
        name, version, _ = archive.name.split("_", 2)
        versions[name] = urllib.parse.unquote(version)
        archive.unlink()
    return versions
