"""`hil doctor` asks for what a lab needs, and says what for. `hil lab status` says who has a
host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.artifacts.store import Store
from harness.lab.doctor import Check, checks
from harness.lab.inventory import HostEntry, Virtual
from harness.lab.status import status
from harness.progress import Progress
from harness.virtual.running import ProcessId, Running

ROOT = Path(__file__).parents[1]
QUIET = Progress(enabled=False)
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
    """Neither those, nor an x86-64 machine: developers of Grace sit at arm64."""
    monkeypatch.setenv("PATH", "")
    found = asked([METAL], tmp_path)
    assert [check.what.split()[0] for check in found.values() if not check.met] == ["ssh", "npm"]
    assert not any("x86" in check.what or "memory" in check.what for check in found.values())
    built = asked([METAL, VIRTUAL], tmp_path)
    assert "builds the kernel" in {check.purpose for check in built.values()}
    assert not built["mmdebstrap"].met
    assert built["mmdebstrap"].fix == "apt-get install mmdebstrap"


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


def test_a_host_that_is_not_virtual_is_not_said_to_be_up(tmp_path: Path) -> None:
    told = status(METAL, Store(tmp_path), QUIET)
    assert told.state == "external"
    assert str(told) == "grace: external at grace.example:22; not asked whether it is up"


def test_status_tells_who_has_a_virtual_host(tmp_path: Path) -> None:
    store, me = Store(tmp_path), ProcessId.mine()
    assert str(status(VIRTUAL, store, QUIET)) == "one: down"
    folder = tmp_path / "hosts/one"
    folder.mkdir(parents=True)
    since = 1795870000.0
    record = Running(me, me, me, 2222, since, booted=False, built_from="")

    def told(record: Running) -> str:
        record.write(folder / "state.json")
        return str(status(VIRTUAL, store, QUIET))

    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    assert told(record).startswith(f"one: booting at 127.0.0.1:2222 since {when}")
    assert f"; ends with process {me.pid} of " in told(replace(record, booted=True))
    assert told(replace(record, booted=True, owner=None)).endswith(
        "; stays up until `hil lab down`"
    )
    other = replace(me, started=me.started - 1)
    assert told(replace(record, owner=other)) == "one: down", "its owner was killed: it ends"
    assert told(replace(record, process=other)) == "one: down"


def test_status_is_for_programs_too(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "harness.cli", "lab", "status", "--json"],
        cwd=ROOT,
        env={**os.environ, "HIL_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert json.loads(told)[0] == {
        **dict.fromkeys(("address", "port", "since", "kernel", "owner")),
        "host": "vgrace",
        "state": "down",
    }
