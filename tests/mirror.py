"""A Debian mirror in a folder, which apt itself reads, and stacks that were found on one."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from harness.artifacts import stack
from harness.artifacts.parts import (
    ARCHITECTURES,
    QEMU_PACKAGES,
    KernelSource,
    QemuPackages,
    Stack,
    StackWish,
)

BACKPORTS = "trixie-backports"


def stack_of(linux: str = "7.3.6-1", qemu: str = "1:11.1.3-1") -> Stack:
    """Return a stack with these versions of Linux 7.3 and of QEMU."""
    versions = {one: dict.fromkeys(QEMU_PACKAGES, qemu) for one in ARCHITECTURES}
    return Stack(
        (KernelSource("linux-source-7.3", linux, BACKPORTS),), QemuPackages(BACKPORTS, versions)
    )


def plant(root: Path) -> None:
    """Have a cache know its stack, so that nobody asks a mirror for it."""
    root.mkdir(parents=True, exist_ok=True)
    stack.write_down(root, StackWish(), stack_of())


@dataclass
class Mirror:
    """A mirror without signatures. What is put there is offered from the next `publish` on."""

    folder: Path
    _stanzas: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def linux(self, version: str, suite: str = BACKPORTS, *, archive: Path | None = None) -> None:
        """Put a source of Linux there; without its `archive` it can be found, not downloaded."""
        series = ".".join(version.split(".")[:2]).partition("~")[0]
        for architecture in ARCHITECTURES:
            self.put(f"linux-source-{series}", version, suite, architecture, "all", archive)

    def qemu(
        self, version: str, suite: str = BACKPORTS, architectures: Iterable[str] = ARCHITECTURES
    ) -> None:
        for architecture in architectures:
            for package in QEMU_PACKAGES:
                self.put(package, version, suite, architecture, architecture)

    def put(
        self,
        package: str,
        version: str,
        suite: str,
        architecture: str,
        built_for: str,
        archive: Path | None = None,
    ) -> None:
        content = archive.read_bytes() if archive else b""
        path = f"pool/{package}_{version.replace(':', '%3a')}_{built_for}.deb"
        if archive:
            (self.folder / "pool").mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(content)
        self._stanzas.setdefault((suite, architecture), []).append(
            f"Package: {package}\nVersion: {version}\nArchitecture: {built_for}\n"
            f"Maintainer: nobody\nDescription: a package\nFilename: {path}\n"
            f"Size: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
        )

    def clear(self, suite: str = BACKPORTS) -> None:
        """Remove all that a suite has."""
        for key in self._stanzas:
            if key[0] == suite:
                self._stanzas[key] = []

    def publish(self) -> None:
        for suite in {suite for suite, _ in self._stanzas}:
            dist = self.folder / "dists" / suite
            sums = []
            for architecture in ARCHITECTURES:
                name = f"main/binary-{architecture}/Packages"
                text = "\n".join(self._stanzas.get((suite, architecture), ())).encode()
                (dist / name).parent.mkdir(parents=True, exist_ok=True)
                (dist / name).write_bytes(text)
                sums.append(f" {hashlib.sha256(text).hexdigest()} {len(text)} {name}\n")
            (dist / "Release").write_text(
                f"Origin: Test\nCodename: {suite}\nArchitectures: {' '.join(ARCHITECTURES)}\n"
                f"Components: main\nDate: Sat, 28 Nov 2026 12:00:00 UTC\nSHA256:\n{''.join(sums)}"
            )


def source_package(folder: Path, version: str) -> Path:
    """Make the Debian package of a source of Linux, with a tarball of one file, and return its
    path."""
    tree, source = folder / "deb", folder / "linux-source-7.3"
    (source).mkdir(parents=True)
    (source / "Makefile").write_text(f"# {version}\n")
    (tree / "usr/src").mkdir(parents=True)
    (tree / "DEBIAN").mkdir()
    tarball = tree / "usr/src/linux-source-7.3.tar.xz"
    subprocess.run(["tar", "-cJf", tarball, "-C", folder, source.name], check=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: linux-source-7.3\nVersion: {version}\nArchitecture: all\n"
        # There is no such package: only the package itself is wanted.
        "Depends: binutils-of-no-suite\nMaintainer: nobody\nDescription: a package\n"
    )
    path = folder / "source.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", tree, path], check=True, capture_output=True
    )
    return path
