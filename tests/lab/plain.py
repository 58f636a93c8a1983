"""Tests use the lab's host as an ordinary machine here: by address and keys, without snapshots."""

from __future__ import annotations

from pathlib import Path

from harness.host.host import HostDescription


def write_inventory(description: HostDescription, folder: Path) -> Path:
    """Write an inventory whose only host is this one into `folder`, and return its path."""
    target = description.target
    devices = "".join(
        f"      - {{bdf: '{bdf}', role: {kind.role}}}\n"
        for bdf, kind in description.devices.items()
    )
    path = folder / "lab.yaml"
    path.write_text(
        "lab: plain\nhosts:\n"
        f"  - name: plain\n    address: {target.address}\n    port: {target.port}\n"
        f"    user: {target.user}\n    key: {target.key}\n    known_hosts: {target.known_hosts}\n"
        f"    devices:\n{devices}"
    )
    return path
