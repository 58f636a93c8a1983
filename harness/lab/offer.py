"""Tell what a host offers to tests: as far as its inventory says, or as it was found to have."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from harness.devices import kind
from harness.errors import LabError
from harness.guest.choice import Candidate
from harness.host.host import SIZES, Host, probes
from harness.lab.inventory import OF_DEBUG_KERNELS, HostEntry
from harness.lab.provide import described, host_files, topology
from harness.progress import Progress

#: How many hosts are asked at a time.
_AT_A_TIME = 16


@dataclass(frozen=True)
class Offer:
    """What a host offers. It certainly has `capabilities`; only probing can tell whether it has the
    `unprobed` ones. `guessed` says whether it is only assumed which devices are behind the same
    SMMU. If `kept_for` names capabilities, the host is there for tests that need one of them."""

    host: str
    devices: tuple[Candidate, ...]
    capabilities: frozenset[str]
    unprobed: frozenset[str] = frozenset()
    guessed: bool = False
    kept_for: frozenset[str] = frozenset()


def offer(entry: HostEntry, probed: Collection[str] | None = None) -> Offer:
    """Return what a host offers. A virtual host has all that it is built with. Any other host has
    the capabilities that `probed` found. If it was not asked, it may have a CMDQV. It is assumed
    that the devices of one PCI segment are behind one SMMU, as on Grace."""
    found = frozenset(probes(host_files(entry))) - {"cmdqv", "no-cmdqv"} - OF_DEBUG_KERNELS
    if entry.virtual is None:
        devices = tuple(
            Candidate(one.bdf, kind(one.role), one.bdf.partition(":")[0]) for one in entry.devices
        )
        certain = _of(devices) | entry.tagged | frozenset(probed or ())
        unprobed = frozenset[str]()
        if probed is None:
            unprobed = found | SIZES | entry.capabilities - entry.tagged
        return Offer(entry.name, devices, certain, unprobed, guessed=True, kept_for=entry.kept_for)
    devices = tuple(
        Candidate(one.bdf, one.kind, str(one.smmu)) for one in topology(entry.virtual).devices()
    )
    certain = _of(devices) | found | entry.capabilities | {f"cpus:{entry.virtual.cpus}"}
    unprobed = SIZES - {"cpus"}
    return Offer(entry.name, devices, certain, unprobed, kept_for=entry.kept_for)


def ask(entries: Sequence[HostEntry], progress: Progress) -> dict[str, list[str]]:
    """Ask the hosts that are not virtual what they have, several at a time, and return their
    capabilities by name. They are not reserved: whoever has them does not notice. One that does not
    answer, or cannot be used now, is left out, with a note."""
    real = [entry for entry in entries if entry.virtual is None]
    if not real:
        return {}

    def asked(entry: HostEntry) -> list[str] | LabError:
        try:
            return sorted(Host.look(described(entry)).capabilities)
        except LabError as problem:
            return problem

    step = f"ask {len(real)} hosts what they have"
    with progress.step(step, 2), ThreadPoolExecutor(_AT_A_TIME) as pool:
        answers = dict(zip([one.name for one in real], pool.map(asked, real), strict=True))
    found = {}
    for name, answer in answers.items():
        if isinstance(answer, LabError):
            progress.note(f"host {name} does not say what it has: {answer.message}")
        else:
            found[name] = answer
    return found


def _of(devices: tuple[Candidate, ...]) -> frozenset[str]:
    """Return the capabilities that a host has by its devices."""
    return frozenset(f"device:{one.kind.role}" for one in devices)
