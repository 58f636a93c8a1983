"""Debian packages for the virtual lab: choose a mirror and unpack packages into trees.

mmdebstrap's extract variant makes the trees: it resolves, verifies and unpacks packages, and runs
no maintainer scripts, so that a foreign architecture needs no emulation.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import urllib.parse
from pathlib import Path

from harness.artifacts import tools
from harness.errors import LabError

SUITE = "trixie"
BACKPORTS = "trixie-backports"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

#: QEMU has vfio-user-pci and a complete accel=on from 11.1 on, which only backports has.
QEMU_PACKAGES = tuple(
    f"{name}/{BACKPORTS}" for name in ("qemu-system-arm", "qemu-system-common", "qemu-system-data")
)


def mirror() -> str:
    """Return the base URL of a Debian mirror: `$HIL_DEBIAN_MIRROR`, or the one that apt uses here.

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
    """Unpack `packages` and what they depend on into `tree`; return the versions by package.

    Raises LabError with the last lines that mmdebstrap printed when a package cannot be had.
    """
    sources = "".join(
        f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n" for suite in (SUITE, BACKPORTS)
    )
    with tempfile.TemporaryDirectory(prefix="hil-debian-") as scratch:
        source_list = Path(scratch, "sources.list")
        source_list.write_text(sources)
        tools.run(
            [
                "mmdebstrap",
                "--quiet",
                "--variant=extract",
                f"--architectures={architecture}",
                f"--include={','.join(packages)}",
                # Keep the downloaded archives: their names have the versions that were chosen.
                "--skip=cleanup/apt/cache",
                SUITE,
                str(tree),
                str(source_list),
            ],
            fix=f"check that the mirror carries {SUITE} and {BACKPORTS}, or set HIL_DEBIAN_MIRROR "
            "to one that does",
        )
    return _versions(tree)


def program(tree: Path, name: str) -> list[str]:
    """Return the command line of an amd64 program of an unpacked tree. It runs with the tree's own
    C library, because this machine's may be older."""
    libraries = tree / "usr/lib/x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(libraries), str(tree / "usr/bin" / name)]


def _versions(tree: Path) -> dict[str, str]:
    """Return the versions that the downloaded archives' names tell, and delete the archives."""
    versions = {}
    for archive in sorted((tree / "var/cache/apt/archives").glob("*.deb")):
        name, version, _ = archive.name.split("_", 2)
        versions[name] = urllib.parse.unquote(version)
        archive.unlink()
    return versions
