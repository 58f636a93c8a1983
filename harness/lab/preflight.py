"""What a run is going to build, and whether the disks have space for it, before anything is made,
built or reserved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.artifacts import disk, parts, stack
from harness.artifacts.store import Recipe, Store
from harness.errors import LabError
from harness.lab.inventory import HostEntry
from harness.lab.provide import machine
from harness.progress import Progress, roughly
from harness.virtual.machine import recipes

#: With less than this no run ends well: a snapshot of a host has some 400 MiB. `hil doctor` asks
#: for what a whole night takes.
_LEAST_SNAPSHOT, _LEAST_RESULTS = 512 << 20, 16 << 20


def check_built(entries: Iterable[HostEntry], store: Store) -> None:
    """Raise LabError if one of these hosts is virtual and has to be built first."""
    for entry in entries:
        missing = _to_build(store) if _boots(entry, store) else []
        if missing:
            names = ", ".join(recipe.name for recipe in missing)
            takes = roughly(sum(recipe.expected_seconds for recipe in missing))
            raise LabError(
                f"--no-build: host {entry.name} is not built: {names} would take {takes}",
                fix="run `hil lab build`, or leave --no-build out",
            )


def check_space(entries: Iterable[HostEntry], store: Store, results: Path) -> None:
    """Raise LabError if a disk has too little space to build these hosts and to save one of their
    snapshots, or for the results of a run, which go into the folder `results`."""
    for entry in entries:
        if not _boots(entry, store):
            continue
        # One after the other: the largest decides.
        for recipe in sorted(_to_build(store), key=lambda one: -one.needs_bytes):
            store.check_space(recipe)
        if "snapshot" in entry.capabilities:
            _check(f"host {entry.name} needs", _LEAST_SNAPSHOT, "for a snapshot", store.root)
    _check("a run needs", _LEAST_RESULTS, "for its results", results)


def _boots(entry: HostEntry, store: Store) -> bool:
    """Return whether a host is a virtual one, and is not up yet."""
    vm = machine(entry, store, Progress(enabled=False))
    return vm is not None and vm.running() is None


def _to_build(store: Store) -> list[Recipe]:
    """Return what must be built before a virtual host boots. Nothing is asked of a mirror."""
    quiet = Progress(enabled=False)
    known = stack.recorded(store.root) or parts.UNKNOWN
    return [recipe for recipe in recipes(known, store, quiet) if not store.has(recipe)]


def _check(who: str, wanted: int, why: str, folder: Path) -> None:
    system = disk.FileSystem.of(folder)
    if system.free < wanted:
        raise LabError(
            f"{who} {disk.size(wanted)} {why} in {folder}: {system}",
            fix="free some space there, for example with `hil lab prune` and `hil runs prune`; "
            "`hil doctor` says how much a whole night takes",
        )
