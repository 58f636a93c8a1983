"""Tell what a host offers to tests as far as its inventory says, without reaching it."""

from __future__ import annotations

from dataclasses import dataclass

from harness.devices import kind
from harness.guest.choice import Candidate
from harness.host.host import probes
from harness.lab.inventory import HostEntry
from harness.lab.provide import host_files, topology


@dataclass(frozen=True)
class Offer:
    """What a host offers. It certainly has `capabilities`; only probing can tell whether it has the
    `unprobed` ones. `guessed` says whether it is only assumed which devices are behind the same
    SMMU."""

    host: str
    devices: tuple[Candidate, ...]
    capabilities: frozenset[str]
    unprobed: frozenset[str] = frozenset()
    guessed: bool = False


def offer(entry: HostEntry) -> Offer:
    """Return what a host offers. A virtual host has all that it is built with. Any other host may
    have a CMDQV, and it is assumed that the devices of one PCI segment are behind one SMMU, as on
    Grace."""
    probed = frozenset(probes(host_files(entry))) - {"cmdqv", "no-cmdqv"}
    if entry.virtual is None:
        devices = tuple(
            Candidate(one.bdf, kind(one.role), one.bdf.partition(":")[0]) for one in entry.devices
        )
        unprobed = probed | entry.capabilities
        return Offer(entry.name, devices, _of(devices), unprobed, guessed=True)
    devices = tuple(
        Candidate(one.bdf, one.kind, str(one.smmu)) for one in topology(entry.virtual).devices()
    )
    return Offer(entry.name, devices, _of(devices) | probed | entry.capabilities)


def _of(devices: tuple[Candidate, ...]) -> frozenset[str]:
    """Return the capabilities that a host has by its devices."""
    return frozenset(f"device:{one.kind.role}" for one in devices)
