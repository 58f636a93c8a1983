"""The stack that a test ran on: host kernel, guest kernel and QEMU, as a run's results tell it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from harness.report.defects import version_in

#: The parts of a stack, by their names in the results of a run.
HOST_KERNEL, GUEST_KERNEL, QEMU = "host kernel", "guest kernel", "QEMU"
PARTS = (HOST_KERNEL, GUEST_KERNEL, QEMU)


def file_of(part: str) -> str:
    """Return the key that has the digest of a part that is tested in place of the host's own."""
    return f"{part} file"


#: All that results say of a stack.
KEYS = (*PARTS, *map(file_of, PARTS))


@dataclass(frozen=True)
class Part:
    """One part of a stack: its version, empty if that is not known, and the digest of its file,
    empty if it is the host's own."""

    version: str
    file: str

    @property
    def order(self) -> tuple[Version, str, str]:
        """Return what parts are sorted by: the oldest first."""
        return version_in(self.version) or Version("0"), self.version, self.file

    @property
    def short(self) -> str:
        """Return the version without what its builder added in brackets."""
        return self.version.partition(" ")[0] or "unknown"

    def __str__(self) -> str:
        version = self.version or "unknown"
        return f"{version} ({self.file})" if self.file else version


@dataclass(frozen=True)
class TestedStack:
    """A combination of the parts, in the order of PARTS."""

    parts: tuple[Part, ...]

    @classmethod
    def told(cls, told: Mapping[str, str]) -> TestedStack:
        """Return the stack that results tell by KEYS. A key may be missing."""
        return cls(tuple(Part(told.get(one, ""), told.get(file_of(one), "")) for one in PARTS))

    @property
    def unknown(self) -> tuple[str, ...]:
        """Return the names of the parts whose version is not known."""
        shown = zip(PARTS, self.parts, strict=True)
        return tuple(name for name, part in shown if not part.version)

    def __str__(self) -> str:
        shown = zip(PARTS, self.parts, strict=True)
        return ", ".join(f"{name} {part}" for name, part in shown)


def lab_of(result: Mapping[str, Any]) -> str:
    """Return the name of the lab of a run's result.json, also if no host was ever open."""
    environment, given = result["environment"], result.get("given", {})
    return str(environment.get("lab") or given.get("lab") or result.get("lab") or "unknown")


def sole_stack(result: Mapping[str, Any]) -> TestedStack | None:
    """Return the stack of a run that had one only, for tests of which the host is not told; None if
    it had several."""
    hosts = {TestedStack.told(one) for one in result.get("stacks", {}).values()}
    if hosts:
        return hosts.pop() if len(hosts) == 1 else None
    environment = result["environment"]
    if any("; " in environment.get(key, "") for key in KEYS):
        # A run of an older version of the project, on hosts with different software.
        return None
    return TestedStack.told({**result.get("given", {}), **environment})


def stack_of(
    result: Mapping[str, Any], test: Mapping[str, Any], sole: TestedStack | None
) -> TestedStack | None:
    """Return the stack on which a test of a run ran, or was to run; None if that is not told.
    `sole` is the run's sole_stack."""
    host = test.get("host", "")
    if not host:
        return sole
    # Of a host that was never open, only that is known which the run was given: it may have other
    # software of its own than the hosts that were.
    return TestedStack.told(result.get("stacks", {}).get(host, result.get("given", {})))


def names(parts: Iterable[Part]) -> dict[Part, str]:
    """Return a short name for each of these parts, by which they can be told apart."""
    distinct = dict.fromkeys(parts)
    short = [part.short for part in distinct]
    return {
        part: part.short
        if short.count(part.short) == 1
        else f"{part.version or 'unknown'} ({part.file or 'own'})"
        for part in distinct
    }
