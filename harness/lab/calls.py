"""Check what a call of pytest or `hil` names: an inventory, a host, the cache (software.py checks
the software). Nothing is built, reserved or reached for that. What is wrong is told with the option
and how to correct it."""

from __future__ import annotations

from pathlib import Path

from harness.artifacts.store import Store
from harness.errors import HarnessError, LabError
from harness.lab import defaults
from harness.lab import inventory as inventories
from harness.lab.inventory import HostEntry, Inventory


def inventory(path: Path) -> Inventory:
    """Return the inventory that `--lab` or `$HIL_LAB` names. Raises HarnessError for a file that
    cannot be read, or is no inventory, with every fault that it has."""
    try:
        return inventories.load(path)
    except LabError as problem:
        named = f"${defaults.LAB}" if path == defaults.lab() else "--lab"
        raise HarnessError(f"{named}: {problem.message}", fix=problem.fix) from None


def host(lab: Inventory, name: str | None) -> HostEntry:
    """Return the host that `--host` names, the first one without a name. Raises HarnessError, which
    lists the names."""
    try:
        return lab.host(name)
    except LabError as problem:
        raise HarnessError(f"--host: {problem.message}", fix=problem.fix) from None


def store() -> Store:
    """Return the cache. Raises HarnessError if its folder cannot be made."""
    cache = Store()
    try:
        cache.root.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise HarnessError(
            f"the cache's folder {cache.root} cannot be made: {problem.strerror}",
            fix="set HIL_CACHE to a folder that you may write to",
        ) from None
    return cache
