"""A host panics, and comes back by Redfish: the emulated BMC restarts the virtual machine. Its
console is carried by IPMI (serial over LAN), and tells what the host died of."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.artifacts.store import Store
from harness.checkout import ROOT
from harness.console.stamps import parse
from harness.host.host import HostDescription
from harness.host.power import PowerState
from harness.lab import inventory
from harness.lab.provide import describe_virtual, machine, power
from harness.progress import Progress
from tests.bmc import start
from tests.bmc.start import PASSWORD, USER
from tests.test_exit_status import pytest_run

pytestmark = pytest.mark.lab

NAME = "vgrace-power"
VIRTUAL = f"""
lab: virtual
hosts:
  - name: {NAME}
    virtual: {{memory_mib: 2048, smmus: 1, plain: true}}
"""
#: The same machine, as one of bare metal is described.
METAL = """
lab: metal
hosts:
  - name: grace-1
    address: 127.0.0.1
    port: {target.port}
    key: {target.key}
    known_hosts: known_hosts
    power:
      redfish:
        {{url: "https://127.0.0.1:{redfish.port}", certificate: "{redfish.certificate}",
          user: {user}, password_file: redfish-password}}
    console:
      ipmi: {{address: 127.0.0.1, port: {ipmi.port}, user: {user}, password_file: ipmi-password}}
    recovery: {{wait: 5, dump: 5}}
"""
SUITE = """
def test_works(host):
    assert host.connection.run("true").status == 0

def test_panics(host):
    host.connection.run("sync; echo c >/proc/sysrq-trigger")

def test_works_again(host):
    assert host.connection.run("true").status == 0
"""


@pytest.fixture
def described(tmp_path: Path) -> Iterator[HostDescription]:
    """Yield the host, which is up, and stays up whoever restarts it."""
    (tmp_path / "virtual.yaml").write_text(VIRTUAL)
    entry = inventory.load(tmp_path / "virtual.yaml").host()
    vm = machine(entry, Store(), Progress(enabled=False))
    assert vm
    running = vm.up(stay=True)
    try:
        yield describe_virtual(entry, vm, running)
    finally:
        vm.down()


def test_a_host_that_panics_comes_back_by_redfish(
    described: HostDescription, tmp_path: Path
) -> None:
    target = described.target
    (tmp_path / "known_hosts").write_text(target.known_hosts.read_text())
    for name, content in (("redfish", PASSWORD), ("ipmi", PASSWORD[:16])):
        (tmp_path / f"{name}-password").touch(0o600)
        (tmp_path / f"{name}-password").write_text(content)
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "test_panicking.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    with start.redfish(tmp_path / "redfish") as redfish, start.ipmi(tmp_path / "ipmi") as ipmi:
        lab = f"--lab={tmp_path / 'virtual.yaml'}"
        act = shlex.join([sys.executable, "-m", "harness.cli", "lab", "power", lab, "cycle", NAME])
        (redfish.folder / "act").write_text(
            f"#!/bin/sh\n[ $1 = ForceRestart ] || exit 0\ncd {ROOT} && exec {act}\n"
        )
        (redfish.folder / "act").chmod(0o755)
        console = ipmi.folder / "console"
        console.unlink()
        vm_console = Store().root / "hosts" / NAME / "console.log"
        console.symlink_to(vm_console)
        (tmp_path / "lab.yaml").write_text(
            METAL.format(target=target, redfish=redfish, ipmi=ipmi, user=USER)
        )
        ended, run = pytest_run(tmp_path, "--lab=lab.yaml")
        assert redfish.did == ["Nmi", "ForceRestart"]
        assert ipmi.did == [], "nothing is typed on the console"
    tests = json.loads((run / "result.json").read_text())["tests"]
    assert [(test["outcome"], test["blame"]) for test in tests] == [
        ("passed", ""),
        ("failed", "product"),
        ("passed", ""),
    ], ended.stdout
    assert "the kernel of host grace-1 died" in tests[1]["message"]
    lines = list(parse((run / "logs" / "grace-1.console.txt").read_text()))
    assert all(when for when, _ in lines)
    text = "\n".join(line for _, line in lines)
    order = ["Kernel panic", "hil: is not well: send it an NMI", "hil: is not well: restart it"]
    order += ["Server listening on"]
    assert sorted(order, key=text.index) == order
    steps = (run / "logs" / "grace-1.recovery.txt").read_text()
    assert "is restarted by its power control" in steps
    (page,) = (run / "logs").glob("*test_panics*/host_console.txt")
    assert "Kernel panic" in page.read_text()
    for file in run.rglob("*"):
        if file.is_file():
            assert PASSWORD[:16].encode() not in file.read_bytes(), file


def test_a_virtual_host_has_a_power_of_its_own(described: HostDescription, tmp_path: Path) -> None:
    entry = inventory.load(tmp_path / "virtual.yaml").host()
    control = power(entry, Store(), Progress(enabled=False))
    assert control
    assert control.state() is PowerState.ON
    control.cycle()
    vm = machine(entry, Store(), Progress(enabled=False))
    assert vm
    running = vm.running()
    assert running
    assert running.port == described.target.port
    control.off()
    assert control.state() is PowerState.OFF
    # Whoever knows the host, such as a labgrid, finds it again.
    control.on()
    again = vm.running()
    assert again
    assert again.port == described.target.port
