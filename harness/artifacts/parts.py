"""The parts of the lab's stack, which are Debian's packages with the source of Linux and with QEMU:
what is asked for, what the mirror has of it, and how it is had in exactly that version."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from harness.artifacts import apt, debian, tools
from harness.artifacts.apt import Index
from harness.errors import HarnessError, LabError
from harness.progress import Progress

#: The newest series of Linux on which the suites pass; the next one replaces it when they do there.
DEFAULT_LINUX = "7.3"
NEWEST = "newest"
#: QEMU runs on this machine, and on the virtual host.
ARCHITECTURES = ("amd64", "arm64")
QEMU_PACKAGES = ("qemu-system-arm", "qemu-system-common", "qemu-system-data")
#: To look at the mirror takes so long, in seconds, and some 800 KB for backports.
_EXPECTED_SECONDS = 6.0

_LINUX, _QEMU = "linux", "qemu"
_SOURCE = r"^linux-source-[0-9]+\.[0-9]+$"
_NUMBERS = r"\d+(?:\.\d+)*"
_PART = re.compile(
    rf"(?P<part>{_LINUX}|{_QEMU})=(?P<versions>(?:{_NUMBERS}|{NEWEST})(?:/(?:{_NUMBERS}|{NEWEST}))*)"
    r"(?:@(?P<suite>[a-z][a-z0-9.-]*))?"
)
SYNTAX = (
    f"say for example linux={DEFAULT_LINUX}, linux={DEFAULT_LINUX},linux=7.2 or qemu={NEWEST}@sid: "
    f"a part (linux or qemu), its version or `{NEWEST}`, and the suite unless it is "
    f"{debian.BACKPORTS}"
)


# -- what is asked for ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What is asked of one part of the stack: the newest version that begins with these numbers, in
    a suite. Of several versions the first that the suite has counts."""

    part: str
    versions: tuple[str, ...]
    suite: str = debian.BACKPORTS

    def __str__(self) -> str:
        return f"{self.part}={'/'.join(self.versions)}@{self.suite}"


@dataclass(frozen=True)
class StackWish:
    """What is asked of a stack: the first Linux is the lab's kernel, others are built besides."""

    # Once the mirror has no such Linux, a new machine can still build a lab.
    linux: tuple[Wish, ...] = (Wish(_LINUX, (DEFAULT_LINUX, NEWEST)),)
    qemu: Wish = Wish(_QEMU, (NEWEST,))

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Return what a text asks for: parts with commas or spaces between them. Of a part that it
        does not name, and for `default`, the default holds. Raises HarnessError, which says `where`
        the text is from."""
        linux: list[Wish] = []
        qemu: list[Wish] = []
        words = text.replace(",", " ").split()
        for word in [] if words == ["default"] else words:
            named = _PART.fullmatch(word)
            if named is None:
                raise HarnessError(f"{where}: {word!r} is no part of a stack", fix=SYNTAX)
            wish = Wish(named["part"], tuple(named["versions"].split("/")))
            if named["suite"]:
                wish = replace(wish, suite=named["suite"])
            (linux if wish.part == _LINUX else qemu).append(wish)
        if len(qemu) > 1:
            raise HarnessError(f"{where}: {text!r} names two QEMUs", fix="name one")
        if len(set(linux)) < len(linux):
            raise HarnessError(f"{where}: {text!r} names a Linux twice", fix="name it once")
        default = cls()
        return cls(tuple(linux) or default.linux, qemu[0] if qemu else default.qemu)

    @property
    def suites(self) -> tuple[str, ...]:
        return tuple(sorted({one.suite for one in (*self.linux, self.qemu)}))

    def __str__(self) -> str:
        return ",".join(map(str, (*self.linux, self.qemu)))


# -- what was found ------------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelSource:
    """A package with the source of Linux, in one exact version."""

    package: str
    version: str
    suite: str

    @property
    def series(self) -> str:
        """Return the series: 7.2 of linux-source-7.2."""
        return self.package.rpartition("-")[2]

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.suite})"


@dataclass(frozen=True)
class QemuPackages:
    """QEMU's packages, with their exact versions by architecture and name. A package that was built
    anew for one architecture has a version of its own there."""

    suite: str
    versions: Mapping[str, Mapping[str, str]]

    @property
    def version(self) -> str:
        """Return the version of the QEMU of the virtual host."""
        return self.versions[ARCHITECTURES[-1]][QEMU_PACKAGES[0]]

    def __str__(self) -> str:
        return f"QEMU {self.version} ({self.suite})"


@dataclass(frozen=True)
class Stack:
    """What the lab is built from. The first Linux is the lab's kernel."""

    linux: tuple[KernelSource, ...]
    qemu: QemuPackages

    def __post_init__(self) -> None:
        """Raise ValueError for a stack that nothing can be built from."""
        versions = self.qemu.versions
        if not self.linux or not all(
            set(QEMU_PACKAGES) <= set(versions.get(one, ())) for one in ARCHITECTURES
        ):
            raise ValueError("a stack has no Linux, or not all packages of QEMU")

    def source(self, series: str | None = None) -> KernelSource:
        """Return the source of the lab's kernel, or that of a series. Raises HarnessError for one
        that the stack does not have."""
        for one in self.linux:
            if series in (None, one.series):
                return one
        raise HarnessError(
            f"the stack has no Linux {series}, only {', '.join(one.series for one in self.linux)}",
            fix=f"ask for it as well: `hil lab build --stack=linux={self.linux[0].series},"
            f"linux={series}`",
        )

    def __str__(self) -> str:
        return ", ".join(map(str, (*self.linux, self.qemu)))


#: In place of a stack that was not found yet: nothing is built of it.
UNKNOWN = Stack(
    (KernelSource("linux-source", "", ""),),
    QemuPackages("", {one: dict.fromkeys(QEMU_PACKAGES, "") for one in ARCHITECTURES}),
)


# -- what the mirror has -------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One part of a stack, and the newest on the mirror of the wish that it was found by; None if
    the mirror has none. `left` says that the mirror does not have the stack's own version any more.
    `later` are newer series of Linux, which are not asked for."""

    part: str
    have: str
    newest: str | None
    outdated: bool
    left: bool
    later: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = f"{self.have}: the newest"
        if self.outdated:
            said = f"{self.have} → {self.newest or 'nothing: the mirror has none any more'}"
        if self.left:
            said += "; the mirror no longer has the old one: no other machine can build it"
        if self.later:
            said += f"; on the mirror, but not asked for: {', '.join(self.later)}"
        return said


def find(wish: StackWish, progress: Progress) -> Stack:
    """Return the newest on the mirror of what is asked for. Raises LabError, which names the part
    that the mirror does not have, and what it has of it."""
    with (
        progress.step("look at the mirror for the lab's stack", _EXPECTED_SECONDS),
        apt.index(wish.suites, ARCHITECTURES) as index,
    ):
        return Stack(tuple(_linux(one, index) for one in wish.linux), _qemu(wish.qemu, index))


def compare(stack: Stack, wish: StackWish, progress: Progress) -> list[Comparison]:
    """Compare a stack with what the mirror has now of the wish that it was found by. Raises
    LabError when the mirror does not tell."""
    with (
        progress.step("look at the mirror for newer packages", _EXPECTED_SECONDS),
        apt.index(wish.suites, ARCHITECTURES) as index,
    ):
        pairs = zip(stack.linux, wish.linux, strict=True)
        linux = [_compare_linux(have, one, stack, index) for have, one in pairs]
        return [*linux, _compare_qemu(stack.qemu, wish.qemu, index)]


def _compare_linux(have: KernelSource, wish: Wish, stack: Stack, index: Index) -> Comparison:
    found = _sources(index, wish.suite)
    newest = next(_fitting(found, wish), None)
    named = {one.package for one in (*stack.linux, newest) if one}
    # Of each series the newest, which is the first.
    series = {one.package: one for one in reversed(found) if one.package not in named}
    later = [one for one in series.values() if _numbers(one.series) > _numbers(have.series)]
    return Comparison(
        *(_LINUX, str(have), str(newest) if newest else None),
        outdated=newest != have,
        left=have not in found,
        later=tuple(map(str, later)),
    )


def _compare_qemu(have: QemuPackages, wish: Wish, index: Index) -> Comparison:
    newest = None
    with contextlib.suppress(LabError):
        newest = _qemu(wish, index)
    now = str(newest) if newest else None
    left = _newest_qemu(index, have.suite) != have.versions
    return Comparison(_QEMU, str(have), now, newest != have, left)


def _linux(wish: Wish, index: Index) -> KernelSource:
    found = _sources(index, wish.suite)
    for one in _fitting(found, wish):
        return one
    raise _lacking(wish, [f"{one.package} {one.version}" for one in found])


def _fitting(found: Sequence[KernelSource], wish: Wish) -> Iterator[KernelSource]:
    """Yield which of these sources a wish is for, the best first."""
    for version in wish.versions:
        yield from (one for one in found if _begins(one.version, version))


def _sources(index: Index, suite: str) -> list[KernelSource]:
    """Return all sources of Linux that a suite has, the newest first."""
    offers = [one for one in index.offers(index.packages(_SOURCE)) if one.suite == suite]
    # The same package is listed for each architecture.
    found = dict.fromkeys(KernelSource(one.package, one.version, suite) for one in offers)
    return sorted(found, key=lambda one: _numbers(one.series), reverse=True)


def _qemu(wish: Wish, index: Index) -> QemuPackages:
    versions = _newest_qemu(index, wish.suite)
    # A version that Debian built anew for one architecture ends with +b and a number there.
    built = {
        architecture: {re.sub(r"\+b\d+$", "", one) for one in of.values()}
        for architecture, of in versions.items()
    }
    complete = all(len(of) == len(QEMU_PACKAGES) for of in versions.values())
    if complete and len(set.union(*built.values())) == 1:
        qemu = QemuPackages(wish.suite, versions)
        if any(_begins(qemu.version, version) for version in wish.versions):
            return qemu
    has = (f"{', '.join(sorted(of)) or 'none'} for {one}" for one, of in built.items())
    raise _lacking(wish, [*has])


def _newest_qemu(index: Index, suite: str) -> dict[str, dict[str, str]]:
    """Return the newest versions of QEMU's packages that a suite has, by architecture and name."""
    versions: dict[str, dict[str, str]] = {one: {} for one in ARCHITECTURES}
    for one in index.offers(QEMU_PACKAGES):
        if one.suite == suite:
            versions[one.architecture].setdefault(one.package, one.version)
    return {one: dict(sorted(of.items())) for one, of in versions.items()}


def _lacking(wish: Wish, has: Sequence[str]) -> LabError:
    return LabError(
        f"the mirror does not have what {wish} asks for; it has in {wish.suite}: "
        f"{'; '.join(has) or 'none at all'}",
        fix=f"ask for something else, by --stack of `hil lab update` or by HIL_STACK: {SYNTAX}",
    )


def _begins(version: str, wanted: str) -> bool:
    """Return whether the upstream part of a Debian version begins with these numbers."""
    numbers = _numbers(version.rpartition(":")[2])
    wish = () if wanted == NEWEST else _numbers(wanted)
    return numbers[: len(wish)] == wish


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(_NUMBERS, version)
    return tuple(map(int, found[0].split("."))) if found else ()


# -- what is built from ---------------------------------------------------------------------------


def unpack_source(source: KernelSource, tree: Path) -> Path:
    """Unpack the package of a kernel's source alone into `tree`, and return the path of its
    tarball. Raises LabError, also when the mirror does not have this version any more."""
    with apt.index((source.suite,), ARCHITECTURES) as index:
        found = _sources(index, source.suite)
        if source not in found:
            raise _gone(str(source), [f"{one.package} {one.version}" for one in found])
        tree.mkdir(parents=True)
        archive = index.download(source.package, source.version, tree)
        tools.run(["dpkg-deb", "--extract", archive, tree])
        archive.unlink()
    return tree / "usr/src" / f"{source.package}.tar.xz"


def unpack_qemu(
    qemu: QemuPackages, architecture: str, others: tuple[str, ...], tree: Path
) -> dict[str, str]:
    """Unpack QEMU, other packages and what they depend on into `tree`; return the versions by
    package. Raises LabError, also when the mirror does not have this version any more."""
    wanted = qemu.versions[architecture]
    with apt.index((qemu.suite,), ARCHITECTURES) as index:
        _check_there(qemu, wanted, _newest_qemu(index, qemu.suite)[architecture])
    # By its suite, QEMU's libraries come from there as well.
    named = tuple(f"{name}/{qemu.suite}" for name in wanted)
    versions = debian.extract(tree, architecture, (*named, *others), debian.family(qemu.suite))
    # The mirror may have changed meanwhile.
    _check_there(qemu, wanted, versions)
    return versions


def _check_there(qemu: QemuPackages, wanted: Mapping[str, str], there: Mapping[str, str]) -> None:
    for name, version in wanted.items():
        if there.get(name) != version:
            raise _gone(f"{name} {version} ({qemu.suite})", [f"{name} {there.get(name, 'none')}"])


def _gone(what: str, has: Sequence[str]) -> LabError:
    return LabError(
        f"the mirror no longer has {what}, of which the lab is to be built; it has "
        f"{', '.join(has) or 'none at all'}",
        fix="run `hil lab update`, which takes what the mirror has now",
    )
