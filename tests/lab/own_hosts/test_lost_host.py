"""A run continues when its host is lost: the host boots again, and only one test fails, with the
lab to blame."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.console.stamps import parse
from harness.virtual.machine import READY
from tests.test_exit_status import pytest_run

pytestmark = pytest.mark.lab

INVENTORY = """
lab: losing
hosts:
  - name: vgrace-to-be-lost
    virtual: {memory_mib: 2048, smmus: 1}
"""
SUITE = """
import json, os, signal
from harness.artifacts.store import Store

def test_works(host):
    assert host.connection.run("true").status == 0

def test_loses_it(host):
    state = Store().root / "hosts" / host.name / "state.json"
    os.kill(json.loads(state.read_text())["process"]["pid"], signal.SIGKILL)
    host.connection.run("true")

def test_works_again(host):
    assert host.connection.run("true").status == 0
"""


def test_a_lost_host_is_booted_again(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "test_losing.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "lab.yaml").write_text(INVENTORY)
    ended, run = pytest_run(tmp_path, "--lab=lab.yaml")
    tests = json.loads((run / "result.json").read_text())["tests"]
    assert [(test["outcome"], test["blame"]) for test in tests] == [
        ("passed", ""),
        ("failed", "lab"),
        ("passed", ""),
    ], ended.stdout
    assert ended.returncode == 11
    assert (run / "logs" / "vgrace-to-be-lost.dmesg.txt").stat().st_size > 1000
    printed = list(parse((run / "logs" / "vgrace-to-be-lost.console.txt").read_text()))
    assert sum(READY in line for _, line in printed) == 2, "both boots are recorded"
    assert all(when for when, _ in printed)
