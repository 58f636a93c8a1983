"""Debian packages for the virtual lab: choose a mirror and unpack packages into trees. Which
versions of the kernel's source and of QEMU these are, stack.py says.

mmdebstrap's extract variant makes the trees: it resolves, verifies and unpacks packages, and runs
no maintainer scripts, so that a foreign architecture needs no emulation.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

from harness.artifacts import architecture, tools
from harness.errors import LabError

SUITE = "trixie"
BACKPORTS = "trixie-backports"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: Who signs what apt takes, as an option of its sources.
TRUST = f"signed-by={KEYRING}"


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


def sources(mirror: str, suites: Iterable[str], options: str = "") -> str:
    """Return apt's list of sources that has these suites of a mirror."""
    options = f"{TRUST} {options}".rstrip()
    return "".join(f"deb [{options}] {mirror} {suite} main\n" for suite in suites)


def family(suite: str) -> tuple[str, ...]:
    """Return the suites that a tree with packages of `suite` is made of: what it adds to, if it is
    none that is complete, and itself."""
    if suite.endswith("-backports"):
        return suite.removesuffix("-backports"), suite
    return ("sid", suite) if suite == "experimental" else (suite,)


def extract(
    tree: Path,
    architecture: str,
    packages: tuple[str, ...],
    suites: tuple[str, ...] = (SUITE, BACKPORTS),
) -> dict[str, str]:
    """Unpack `packages` and what they depend on into `tree`; return the versions by package. The
    packages come from the first suite, or from that of `package/suite`.

    Raises LabError with the last lines that mmdebstrap printed when a package cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="hil-debian-") as scratch:
        source_list = Path(scratch, "sources.list")
        source_list.write_text(sources(mirror(), suites))
        tools.run(
            [
                "mmdebstrap",
                "--quiet",
                "--variant=extract",
                f"--architectures={architecture}",
                f"--include={','.join(packages)}",
                # Keep the downloaded archives: their names have the versions that were chosen.
                "--skip=cleanup/apt/cache",
                *_validity(),
                suites[0],
                str(tree),
                str(source_list),
            ],
            fix=f"check that the mirror carries {' and '.join(suites)}, or set HIL_DEBIAN_MIRROR "
            "to one that does",
        )
    return _versions(tree)


def _validity() -> list[str]:
    """Return mmdebstrap's option to take a mirror whose date of expiry has passed, such as one that
    is frozen, if apt takes it on this machine."""
    setting = "Acquire::Check-Valid-Until"
    asked = ["apt-config", "shell", "CHECKED", f"{setting}/b"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return [f'--aptopt={setting} "false"'] if "false" in said else []


def program(tree: Path, name: str) -> list[str]:
    """Return the command line of a program of a tree that was unpacked for this machine. It runs
    with the tree's own C library, because this machine's may be older."""
    here = architecture.here()
    libraries = tree / "usr/lib" / here.triplet
    loader = libraries / here.loader
    return [str(loader), "--library-path", str(libraries), str(tree / "usr/bin" / name)]


def _versions(tree: Path) -> dict[str, str]:
    """Return the versions that the downloaded archives' names tell, and delete the archives."""
    versions = {}
    for archive in sorted((tree / "var/cache/apt/archives").glob("*.deb")):
        name, version, _ = archive.name.split("_", 2)
        versions[name] = urllib.parse.unquote(version)
        archive.unlink()
    return versions
