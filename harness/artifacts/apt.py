"""Ask apt which packages the Debian mirror has, and download one.

apt verifies the mirror's signatures. It works in a temporary folder, so that this needs no root,
and leaves the state of this machine's apt as it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.artifacts import architecture, debian, tools
from harness.errors import LabError

#: What the machine's configuration says of proxies and certificates counts here, too; not what it
#: does after an update, which is for the machine's own state.
_CONFIGURATION = """\
#clear APT::Update;
#clear APT::Architectures;
APT::Architecture "{native}";
APT::Architectures {{ {architectures} }};
APT::Default-Release "";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Dir::Cache "{folder}/cache";
Dir::Cache::archives "archives/";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "";
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "{folder}/state";
Dir::State::lists "lists/";
Dir::State::status "/dev/null";
"""
_NO_SUITE = re.compile(r"^E: The repository '\S+ (\S+) Release' does not have a Release", re.M)


@dataclass(frozen=True)
class Offered:
    """A version of a package that a suite has for an architecture."""

    package: str
    version: str
    suite: str
    architecture: str


@dataclass(frozen=True)
class Index:
    """What the mirror has in some suites, as apt has read it into `folder`."""

    folder: Path
    architectures: tuple[str, ...]

    def packages(self, pattern: str) -> list[str]:
        """Return the names of packages that an extended regular expression is found in, sorted."""
        # `pkgnames` would leave out packages that are for all architectures.
        found = self._ask("search", "--names-only", pattern).splitlines()
        return sorted(line.partition(" ")[0] for line in found)

    def offers(self, packages: Collection[str]) -> list[Offered]:
        """Return the versions of packages, of each package the newest first."""
        names = [*packages, *(f"{name}:{one}" for name in packages for one in self.architectures)]
        found: dict[Offered, None] = {}
        for line in self._ask("madison", *names).splitlines():
            name, version, source = (word.strip() for word in line.split("|"))
            # `MIRROR SUITE/COMPONENT ARCHITECTURE Packages`
            place, architecture, _ = source.split()[-3:]
            suite, _, _ = place.rpartition("/")
            found[Offered(name.partition(":")[0], version, suite, architecture)] = None
        return list(found)

    def download(self, package: str, version: str, into: Path) -> Path:
        """Download a version of a package into a folder, and return the file's path. Raises
        LabError."""
        tools.run([*self._command("apt-get"), "download", f"{package}={version}"], folder=into)
        (archive,) = into.glob(f"{package}_*.deb")
        return archive

    def _ask(self, *words: str) -> str:
        return subprocess.run(
            [*self._command("apt-cache"), *words],
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def _command(self, program: str) -> list[str]:
        return [program, f"--config-file={self.folder / 'apt.conf'}"]


@contextmanager
def index(suites: Collection[str], architectures: tuple[str, ...]) -> Iterator[Index]:
    """Read what the mirror has in these suites for these architectures, and yield it.

    Raises LabError when the mirror cannot be reached, has no such suite, or is not signed by
    Debian; and on a machine that has no apt.
    """
    architecture.here()
    mirror = debian.mirror()
    with tempfile.TemporaryDirectory(prefix="hil-apt-") as scratch:
        folder = Path(scratch)
        # apt downloads as its own user where it is run by root.
        folder.chmod(0o755)
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        only = f"target=Packages arch={','.join(architectures)}"
        (folder / "sources.list").write_text(debian.sources(mirror, suites, only))
        (folder / "apt.conf").write_text(
            _CONFIGURATION.format(
                folder=folder,
                native=architectures[-1],
                architectures=" ".join(f'"{one}";' for one in architectures),
            )
        )
        found = Index(folder, architectures)
        _update(found, mirror)
        yield found


def _update(found: Index, mirror: str) -> None:
    try:
        tools.run(
            [*("env", "LC_ALL=C.UTF-8"), *found._command("apt-get"), "update", "--error-on=any"],
            fix="check that this machine reaches the mirror, or set HIL_DEBIAN_MIRROR to another",
        )
    except LabError as problem:
        missing = _NO_SUITE.search(re.sub(r"^ +", "", problem.message, flags=re.M))
        if missing is None:
            raise
        raise LabError(
            f"the mirror {mirror} has no suite {missing[1]}",
            fix=f"name one that it has, such as {debian.SUITE}, {debian.BACKPORTS} or sid, or set "
            "HIL_DEBIAN_MIRROR to another mirror",
        ) from None
