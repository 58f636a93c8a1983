"""A host's power is controlled by a real BMC, an emulated one that speaks real Redfish or IPMI, and
by commands. No password is in anything that is told."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.checkout import ROOT
from harness.errors import LabError
from harness.host.connection import Connection
from harness.host.power import HostPower, PowerState, PowerUnsupportedError
from harness.host.session import Session
from harness.lab import inventory
from harness.lab.reservation import reserved
from harness.power import command, settle
from harness.power.kinds import PowerEntry
from harness.progress import Progress
from harness.waiting import wait_for
from tests.bmc import start
from tests.bmc.start import PASSWORD, USER, Bmc
from tests.sshd import Sshd, sshd

VARIABLE = "HIL_TEST_BMC"


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, PASSWORD)


def control(**entry: Any) -> HostPower:
    return PowerEntry.model_validate(entry).control("grace-1")


# -- Redfish -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redfish(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bmc]:
    with start.redfish(tmp_path_factory.mktemp("redfish") / "bmc") as bmc:
        yield bmc


def by_redfish(bmc: Bmc, **changed: Any) -> HostPower:
    entry = {
        "url": f"https://127.0.0.1:{bmc.port}",
        "user": USER,
        "password_env": VARIABLE,
        "certificate": bmc.certificate,
    }
    return control(redfish={**entry, **changed})


def new(bmc: Bmc, seen: list[str]) -> list[str]:
    return bmc.did[len(seen) :]


def test_redfish_turns_a_host_on_and_off_restarts_and_interrupts_it(redfish: Bmc) -> None:
    power, before = by_redfish(redfish), redfish.did
    redfish.power("On")
    assert power.state() is PowerState.ON
    power.on()
    assert new(redfish, before) == [], "it is on"
    power.nmi()
    power.cycle()
    power.off()
    assert power.state() is PowerState.OFF
    power.off()
    power.cycle()
    assert power.state() is PowerState.ON
    assert new(redfish, before) == ["Nmi", "ForceRestart", "ForceOff", "On"]


def refused(power: HostPower) -> str:
    """Return what is told of a BMC that cannot be used."""
    with pytest.raises(LabError) as caught:
        power.state()
    assert caught.value.fix
    told = "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in told
    return str(caught.value)


def test_a_wrong_password_is_told(redfish: Bmc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "wrong-and-secret")
    said = refused(by_redfish(redfish))
    assert f"refuses user {USER} or the password" in said
    assert "wrong-and-secret" not in said


def test_a_password_may_have_any_letter(redfish: Bmc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "пароль-€")
    assert f"refuses user {USER} or the password" in refused(by_redfish(redfish))


def test_a_certificate_that_nobody_vouches_for_is_refused(redfish: Bmc) -> None:
    said = refused(by_redfish(redfish, certificate=None))
    assert "power.redfish.certificate" in said


def test_a_bmc_that_is_not_there_is_told_soon(redfish: Bmc) -> None:
    said = refused(by_redfish(redfish, url="https://127.0.0.1:1"))
    assert "check power.redfish.url" in said


def test_a_certificate_that_is_no_file_is_named(redfish: Bmc) -> None:
    assert "/nowhere is no file" in refused(by_redfish(redfish, certificate="/nowhere"))


def test_one_of_several_systems_has_to_be_named(tmp_path: Path) -> None:
    with start.redfish(tmp_path / "bmc", "one", "two") as bmc:
        said = refused(by_redfish(bmc))
        assert "2 systems that may be meant, of one, two" in said
        assert by_redfish(bmc, system="two").state() is PowerState.ON
        assert "0 systems" in refused(by_redfish(bmc, system="three"))


def test_the_library_is_asked_for(redfish: Bmc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sushy", None)
    assert "pip install 'grace-smmu-hil[redfish]'" in refused(by_redfish(redfish))


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost", True),
        ("http://[::1]:8000", True),
        ("http://grace-1-bmc.lab.example", False),
        ("http://10.0.0.1", False),
        ("https://admin:secret@bmc.lab.example", False),
        ("ftp://bmc", False),
    ],
)
def test_no_password_goes_over_a_net_in_clear(url: str, allowed: bool) -> None:
    entry = {"redfish": {"url": url, "user": USER, "password_env": VARIABLE}}
    if allowed:
        PowerEntry.model_validate(entry)
    else:
        with pytest.raises(ValueError, match="url"):
            PowerEntry.model_validate(entry)


# -- IPMI --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ipmi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bmc]:
    with start.ipmi(tmp_path_factory.mktemp("ipmi") / "bmc") as bmc:
        yield bmc


def by_ipmi(bmc: Bmc, **changed: Any) -> HostPower:
    entry = {"address": "127.0.0.1", "port": bmc.port, "user": USER, "password_env": VARIABLE}
    return control(ipmi={**entry, **changed})


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, PASSWORD[:16])


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("cipher", [None, 3])
def test_ipmi_turns_a_host_on_and_off_restarts_and_interrupts_it(
    ipmi: Bmc, cipher: int | None
) -> None:
    power, before = by_ipmi(ipmi, cipher=cipher), ipmi.did
    ipmi.power("on")
    assert power.state() is PowerState.ON
    power.nmi()
    power.cycle()
    power.off()
    assert power.state() is PowerState.OFF
    power.cycle()
    assert power.state() is PowerState.ON
    assert new(ipmi, before) == ["diag", "reset", "off", "on"]


def test_ipmi_refuses_a_wrong_password(ipmi: Bmc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "wrong-and-secret")
    said = refused(by_ipmi(ipmi))
    assert "Unable to establish IPMI v2 / RMCP+ session" in said
    assert "wrong-and-secret" not in said
    assert "IANA" not in said


def test_a_password_too_long_for_ipmi_is_told(ipmi: Bmc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "x" * 21)
    assert "longer than IPMI allows, 20 bytes" in refused(by_ipmi(ipmi))


@pytest.mark.usefixtures("_short")
def test_ipmitool_is_asked_for(ipmi: Bmc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "apt-get install ipmitool" in refused(by_ipmi(ipmi))


@pytest.mark.usefixtures("_short")
def test_no_process_shows_the_password(
    ipmi: Bmc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = tmp_path / "shown"
    (tmp_path / "ipmitool").write_text(f'#!/bin/sh\ntr "\\0" " " </proc/$$/cmdline >{shown}\n')
    (tmp_path / "ipmitool").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert by_ipmi(ipmi).state() is PowerState.UNKNOWN
    assert "chassis power status" in shown.read_text()
    assert PASSWORD[:16] not in shown.read_text()


# -- commands ----------------------------------------------------------------------------------


def by_command(folder: Path, **changed: str) -> HostPower:
    did, state = folder / "did", folder / "power"
    entry = {
        "on": f"echo $HIL_HOST on >>{did}; echo on >{state}",
        "off": f"echo $HIL_HOST off >>{did}; echo off >{state}",
        "status": f"echo the socket is; cat {state}",
    }
    return control(command={**entry, **changed})


def test_commands_turn_a_host_on_and_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "OFF_SECONDS", 0.0)
    power = by_command(tmp_path)
    power.on()
    assert power.state() is PowerState.ON
    power.cycle()
    power.off()
    assert power.state() is PowerState.OFF
    did = (tmp_path / "did").read_text().split()
    assert did == ["grace-1", "on", "grace-1", "off", "grace-1", "on", "grace-1", "off"]


def test_a_host_that_is_restarted_stays_off_until_its_power_supply_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it may run on through what a socket does at once."""
    monkeypatch.setattr(settle, "OFF_SECONDS", 0.5)
    log = tmp_path / "log"
    control(command=dict.fromkeys(("on", "off"), f"date +%s.%N >>{log}")).cycle()
    off, on = map(float, log.read_text().split())
    assert 0.4 < on - off < 30


def test_a_command_of_its_own_restarts_and_interrupts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    power = by_command(tmp_path, cycle=f"echo cycle >>{log}", nmi=f"echo nmi >>{log}")
    power.cycle()
    power.nmi()
    assert log.read_text() == "cycle\nnmi\n"


def test_what_no_command_does_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "OFF_SECONDS", 0.0)
    with pytest.raises(PowerUnsupportedError, match="diagnostic interrupt") as caught:
        by_command(tmp_path).nmi()
    assert caught.value.fix
    without = control(command={"on": "true", "off": "true"})
    assert without.state() is PowerState.UNKNOWN
    without.cycle()


def test_a_command_that_fails_is_told_by_its_name(tmp_path: Path) -> None:
    power = by_command(tmp_path, status="PASSWORD=secret; echo no socket >&2; exit 3")
    with pytest.raises(LabError) as caught:
        power.state()
    said = str(caught.value)
    assert "power.command.status of host grace-1 ended with status 3: no socket" in said
    assert "secret" not in said


def test_a_command_must_say_on_or_off(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="prints neither on nor off"):
        by_command(tmp_path, status="echo perhaps").state()


def test_a_command_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "COMMAND_SECONDS", 0.3)
    pid = tmp_path / "pid"
    power = by_command(tmp_path, status=f"echo $$ >{pid}; sleep 1000")
    with pytest.raises(LabError, match="did not end within"):
        power.state()
    assert not Path("/proc", pid.read_text().strip()).exists()


def test_what_a_command_leaves_behind_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell has ended, and what it started holds its output."""
    monkeypatch.setattr(command, "COMMAND_SECONDS", 0.5)
    pid = tmp_path / "pid"
    power = by_command(tmp_path, status=f"sleep 1000 & echo $! >{pid}")
    with pytest.raises(LabError, match="did not end within"):
        power.state()
    left = int(pid.read_text())
    wait_for("what was left to end", lambda: not psutil.pid_exists(left), deadline=5)


def test_what_a_command_leaves_in_another_session_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that a command starts is out of reach, and may hold the command's output."""
    monkeypatch.setattr(command, "COMMAND_SECONDS", 0.5)
    pid = tmp_path / "pid"
    power = by_command(tmp_path, status=f"setsid sh -c 'echo $$ >{pid}; exec sleep 20' &")
    began = time.monotonic()
    with pytest.raises(LabError, match="did not end within"):
        power.state()
    took = time.monotonic() - began
    os.kill(int(pid.read_text()), signal.SIGKILL)
    assert took < 10


def test_a_host_that_stays_off_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.power.settle.SETTLE_SECONDS", 0.3)
    with pytest.raises(LabError, match="for host grace-1 to be on; last seen: off"):
        by_command(tmp_path, on="true", status="echo off").on()


# -- the command of hil ------------------------------------------------------------------------

LAB = """
lab: mine
hosts:
  - name: grace-1
    address: 127.0.0.1
    port: 1
    key: id
    known_hosts: known_hosts
    power:
      command:
        on: "echo on >power"
        off: "echo off >power"
        nmi: "echo nmi >nmi"
        status: "cat power"
  - {name: grace-2, address: 127.0.0.1, port: 2, key: id, known_hosts: known_hosts}
"""


def hil(folder: Path, *arguments: str, lab: str = LAB) -> subprocess.CompletedProcess[str]:
    (folder / "lab.yaml").write_text(lab)
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", "lab", "power", "--lab=lab.yaml", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HIL_CACHE": str(folder / "cache"), "HOME": str(folder)}
        | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_hil_controls_the_power(tmp_path: Path) -> None:
    (tmp_path / "power").write_text("on")
    for action, said in (
        ("status", "on"),
        ("off", "off"),
        ("status", "off"),
        ("cycle", "restarted"),
        ("status", "on"),
        ("nmi", "interrupted"),
    ):
        ended = hil(tmp_path, action, "grace-1")
        assert (ended.stdout, ended.stderr) == (f"grace-1: {said}\n", "")
    assert (tmp_path / "nmi").exists()


def test_hil_says_when_nothing_controls_it(tmp_path: Path) -> None:
    ended = hil(tmp_path, "off", "grace-2")
    assert ended.returncode == 1
    assert "nothing controls the power of host grace-2" in ended.stderr
    assert "docs/lab.md" in ended.stderr


def test_hil_wants_a_host(tmp_path: Path) -> None:
    assert hil(tmp_path, "off").returncode == 2
    assert "has no host grace-3" in hil(tmp_path, "off", "grace-3").stderr


@contextlib.contextmanager
def answering(folder: Path) -> Iterator[Sshd]:
    """Have a real SSH server be the host."""
    (folder / "power").write_text("on")
    with sshd(folder / "sshd") as server:
        (folder / "known_hosts").write_text(server.target.known_hosts.read_text())
        (folder / "id").write_text(server.key.read_text())
        (folder / "id").chmod(0o600)
        yield server


def test_a_host_that_a_run_elsewhere_has_is_left_alone(tmp_path: Path) -> None:
    with answering(tmp_path) as server, Connection.to(server.target) as link:
        lab = LAB.replace("port: 1\n", f"port: {server.port}\n")
        session = Session.start(link)
        for action in ("off", "nmi"):
            ended = hil(tmp_path, action, "grace-1", lab=lab)
            assert ended.returncode == 1
            assert re.search("host .* is in use by .* process", ended.stderr)
            assert not (tmp_path / "nmi").exists()
        assert hil(tmp_path, "status", "grace-1", lab=lab).stdout == "grace-1: on\n"
        assert (
            hil(tmp_path, "nmi", "grace-1", "--force", lab=lab).stdout == "grace-1: interrupted\n"
        )
        session.end()
        assert hil(tmp_path, "off", "grace-1", lab=lab).stdout == "grace-1: off\n"


def test_a_host_that_a_run_here_has_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "power").write_text("on")
    (tmp_path / "lab.yaml").write_text(LAB)
    entry = inventory.load(tmp_path / "lab.yaml").host()
    with reserved(entry, tmp_path / "cache", Progress(enabled=False)):
        ended = hil(tmp_path, "on", "grace-1")
        assert "host grace-1 is in use by" in ended.stderr
        assert hil(tmp_path, "cycle", "grace-1", "--force").returncode == 0


# -- a virtual host ----------------------------------------------------------------------------


def test_hil_asks_a_virtual_host_that_is_down(tmp_path: Path) -> None:
    (tmp_path / "virtual.yaml").write_text("lab: mine\nhosts:\n  - {name: one, virtual: {}}\n")
    ended = hil(tmp_path, "status", "one", "--lab=virtual.yaml")
    assert (ended.stdout, ended.stderr) == ("one: off\n", "")
    assert hil(tmp_path, "off", "one", "--lab=virtual.yaml").stdout == "one: off\n"


# -- inventories -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("power", "said"),
    [
        ("{}", "needed: one of redfish, ipmi, command"),
        (
            "{command: {on: a, off: b}, ipmi: {address: b, user: u, password_env: P}}",
            "needed: one of redfish, ipmi, command",
        ),
        (
            "{ipmi: {address: bmc, user: admin}}",
            "needed: one of password_env, password_file, password_command",
        ),
        (
            "{ipmi: {address: bmc, user: admin, password_env: P, password_file: f}}",
            "needed: one of password_env, password_file, password_command",
        ),
        ("{ipmi: {address: bmc, user: admin, password: secret}}", "password: unknown field"),
        ("{command: {on: a}}", "off: missing; needed: a command of this machine's shell"),
    ],
)
def test_a_wrong_entry_is_told(tmp_path: Path, power: str, said: str) -> None:
    text = LAB.partition("  - {name: grace-2")[0].partition("    power:")[0]
    (tmp_path / "lab.yaml").write_text(f"{text}    power: {power}\n")
    with pytest.raises(LabError) as caught:
        inventory.load(tmp_path / "lab.yaml")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_example_inventory_shows_entries_that_load(tmp_path: Path) -> None:
    text = (ROOT / "lab-inventory" / "grace.example.yaml").read_text()
    entries = re.sub(r"^    # (power:|console:|  )", r"    \1", text, flags=re.MULTILINE)
    (tmp_path / "lab.yaml").write_text(entries)
    entry = inventory.load(tmp_path / "lab.yaml").host()
    assert entry.power
    assert entry.power.redfish
    assert entry.console
    assert entry.console.ssh


def test_paths_of_an_entry_start_at_the_file(tmp_path: Path) -> None:
    text = LAB.partition("    power:")[0]
    power = "{redfish: {url: 'https://b', user: u, password_file: p, certificate: ~/c}}"
    (tmp_path / "lab.yaml").write_text(f"{text}    power: {power}\n")
    entry = inventory.load(tmp_path / "lab.yaml").host().power
    assert entry
    assert entry.redfish
    assert entry.redfish.password_file == tmp_path / "p"
    assert entry.redfish.certificate == Path("~/c").expanduser()


def test_a_virtual_host_has_a_power_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(
        "lab: mine\nhosts:\n  - {name: one, virtual: {}, power: {command: {on: a, off: b}}}\n"
    )
    with pytest.raises(LabError, match="a virtual host has no `power`"):
        inventory.load(tmp_path / "lab.yaml")
