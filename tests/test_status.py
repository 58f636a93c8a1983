"""`hil lab status` tells the truth of each host: whether it answers, what it runs, who has it."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.artifacts.store import Store
from harness.host.connection import Connection
from harness.host.session import Session
from harness.lab.inventory import HostEntry, Inventory, Virtual
from harness.lab.reservation import reserved
from harness.lab.status import status, statuses
from harness.progress import Progress
from harness.virtual.running import ProcessId, Running
from tests.sshd import Sshd, sshd

ROOT = Path(__file__).parents[1]
QUIET = Progress(enabled=False)
VIRTUAL = HostEntry(name="one", virtual=Virtual())
ME = rf"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}, since 20\d\d-.*"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a /run of its own")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with sshd(tmp_path / "ssh") as running:
        yield running


def entry(server: Sshd, name: str = "grace", *, port: int | None = None) -> HostEntry:
    """Return the inventory's entry of a host that this server is."""
    qemu = server.folder / "qemu it"
    if not qemu.exists():
        qemu.write_text("#!/bin/sh\necho QEMU emulator version 11.1.3 \\(Debian\\)\n")
        qemu.chmod(0o755)
    target = server.target
    return HostEntry.model_construct(
        name=name,
        address=target.address,
        port=port or target.port,
        user=target.user,
        key=target.key,
        known_hosts=target.known_hosts,
        qemu=str(qemu),
    )


@as_root
def test_a_host_tells_what_it_runs_and_who_has_it(server: Sshd, tmp_path: Path) -> None:
    host, store = entry(server), Store(tmp_path / "cache")
    first, runs, free, nobody = str(status(host, store)).splitlines()
    assert first == f"grace: up at 127.0.0.1:{server.port}"
    assert re.fullmatch(
        rf"  kernel {re.escape(platform.release())}, QEMU 11\.1\.3, up for (\d+ days|\d+:\d\d h)",
        runs,
    )
    assert re.fullmatch(r"  free: [\d.]+ [GMK]iB of [\d.]+ [GMK]iB at /.*, .* at /run", free)
    assert nobody == "  free for a run"
    with Connection.to(server.target) as link:
        session = Session.start(link)
        assert re.fullmatch(rf"  in use by {ME}", str(status(host, store)).splitlines()[-1])
        link.run("echo >/run/hil/lock")
        assert str(status(host, store)).splitlines()[-1] == "  in use by somebody unknown"
        session.end()
    assert str(status(host, store)).splitlines()[-1] == "  free for a run"


def test_a_run_that_waits_or_boots_has_the_host_already(server: Sshd, tmp_path: Path) -> None:
    host, store = entry(server), Store(tmp_path / "cache")
    with reserved(host, store.root, QUIET):
        assert re.fullmatch(rf"  in use by {ME}", str(status(host, store)).splitlines()[-1])
    assert status(host, store).holder is None


def test_each_host_that_does_not_answer_is_told(server: Sshd, tmp_path: Path) -> None:
    closed = entry(server, "closed", port=1)
    strange = entry(server, "strange").model_copy(update={"known_hosts": tmp_path / "none"})
    lab = Inventory(lab="lab", hosts=(closed, strange, entry(server)))
    found = statuses(lab, Store(tmp_path), QUIET)
    assert [one.host for one in found] == ["closed", "strange", "grace"]
    assert [one.state for one in found] == ["unreachable", "unreachable", "up"]
    assert [bool(one.problem) for one in found] == [True, True, False]
    assert str(found[0]).startswith("closed: unreachable at 127.0.0.1:1\n  ")
    assert "refused" in str(found[0].problem)
    assert "none" in str(found[1].problem)


def test_the_command_fails_if_a_host_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(
        "lab: one\nhosts:\n  - {name: a, address: 127.0.0.1, port: 1, key: k, known_hosts: h,"
        " qemu: /q, firmware: /f, guest_kernel: /g, guest_initrd: /i}\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "harness.cli", "lab", "status", f"--lab={tmp_path / 'lab.yaml'}"],
        cwd=ROOT,
        env={**os.environ, "HIL_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "\na: unreachable" in ended.stdout


def test_status_tells_who_has_a_virtual_host(tmp_path: Path) -> None:
    store, me = Store(tmp_path), ProcessId.mine()
    assert str(status(VIRTUAL, store)) == "one: down"
    folder = tmp_path / "hosts/one"
    folder.mkdir(parents=True)
    since = 1795870000.0
    record = Running(me, me, me, 2222, since, booted=False, built_from="")

    def told(record: Running) -> str:
        record.write(folder / "state.json")
        return str(status(VIRTUAL, store))

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
        **dict.fromkeys(("answer", "problem", "holder", "wish")),
        "places": [],
        "waiting": 0,
        "host": "vgrace",
        "state": "down",
    }
