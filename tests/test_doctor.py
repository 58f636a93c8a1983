"""`hil doctor` asks for what a lab needs, and says what for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.artifacts.store import Store
from harness.lab.doctor import Check, checks
from harness.lab.inventory import HostEntry, Virtual

ROOT = Path(__file__).parents[1]
VIRTUAL = HostEntry(name="one", virtual=Virtual())
METAL = HostEntry(
    name="grace", address="grace.example", key=Path("/key"), known_hosts=Path("/hosts")
)


def asked(hosts: Sequence[HostEntry], root: Path) -> dict[str, Check]:
    """Return the checks for these hosts, by the first word of what they check."""
    found = list(checks(hosts, Store(root / "cache"), root / "out"))
    assert all(check.purpose and check.fix for check in found)
    return {" ".join(check.what.split(" (")[0].split()[:8]): check for check in found}


def test_a_bare_metal_lab_needs_no_tools_to_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those, nor a machine of a certain architecture."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dpkg").symlink_to("/usr/bin/dpkg")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = asked([METAL], tmp_path)
    assert [check.what.split()[0] for check in found.values() if not check.met] == ["ssh", "npm"]
    assert not any("Debian" in check.what or "memory" in check.what for check in found.values())
    built = asked([METAL, VIRTUAL], tmp_path)
    assert "builds the kernel" in {check.purpose for check in built.values()}
    assert not built["mmdebstrap"].met
    assert built["mmdebstrap"].fix == "apt-get install mmdebstrap"


BY_IPMI = {"ipmi": {"address": "bmc", "user": "admin", "password_env": "BMC"}}
BY_REDFISH = {"redfish": {"url": "https://bmc", "user": "admin", "password_env": "BMC"}}


def test_what_reaches_bmcs_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not {"ipmitool", "the Python package sushy"} & set(asked([METAL], tmp_path))
    power = {**METAL.model_dump(exclude_unset=True), "power": BY_IPMI}
    console = {**METAL.model_dump(exclude_unset=True), "console": BY_IPMI}
    for entry in (power, console):
        found = asked([HostEntry.model_validate(entry)], tmp_path)["ipmitool"]
        assert (found.met, found.fix) == (False, "apt-get install ipmitool")
    redfish = HostEntry.model_validate({**power, "power": BY_REDFISH})
    assert asked([redfish], tmp_path)["the Python package sushy"].met
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not asked([redfish], tmp_path)["the Python package sushy"].met


def test_a_larger_host_needs_more_memory(tmp_path: Path) -> None:
    large = HostEntry(name="large", virtual=Virtual(memory_mib=65536))
    assert "4.0 GiB of memory" in asked([VIRTUAL], tmp_path)
    assert "65.0 GiB of memory" in asked([VIRTUAL, large], tmp_path)


#: Print what `checks` says of a cache and of results on file systems of 10 MiB.
SMALL = """
import sys
from pathlib import Path
from harness.artifacts.store import Store
from harness.lab.doctor import checks
from harness.lab.inventory import HostEntry, Virtual

root = Path(sys.argv[1])
host = HostEntry(name="one", virtual=Virtual())
for check in checks([host], Store(root / "cache"), root / "out"):
    if " of disk for the " in check.what:
        print(check.met, check.what, check.purpose, check.fix)
"""


def test_too_little_disk_is_told(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=10m none "$1" && {sys.executable} -c "$2" "$1"'
    said = subprocess.run(
        [*("unshare", "--mount", "--map-root-user"), "sh", "-c", script, "sh", tmp_path, SMALL],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"False 14.2 GiB of disk for the cache {tmp_path}/cache (the file ")
    assert "(tmpfs, 10.0 MiB free)" in said[0]
    assert "what is to be built (emulator, kernel, guest, host), and snapshots" in said[0]
    assert "hil lab prune" in said[0]
    assert said[1].startswith("False 1.0 GiB of disk for the results")
    assert "hil runs prune" in said[1]


def test_the_command_takes_a_lab(tmp_path: Path) -> None:
    hil = [sys.executable, "-m", "harness.cli", "doctor"]
    example = ["--lab", "lab-inventory/grace.example.yaml"]
    ended = subprocess.run(
        [*hil, *example],
        cwd=ROOT,
        env={**os.environ, "HIL_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "runs the tests" in ended.stdout
    assert "mmdebstrap" not in ended.stdout
