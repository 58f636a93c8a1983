"""A test is skipped, and names what is missing, if the host does not have its devices. It may not
ask for devices that it did not declare."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]

CONFTEST = """
from types import SimpleNamespace
import pytest
from harness.guest.fleet import Fleet
from harness.progress import Progress

pytest_plugins = ["harness.fixtures.lab", "harness.fixtures.guests"]

@pytest.fixture
def host():
    description = SimpleNamespace(devices={})
    return SimpleNamespace(name="bare", console=None, devices={}, description=description)

@pytest.fixture
def host_name(host):
    return host.name

@pytest.fixture
def hosts(host):
    return SimpleNamespace(open=lambda name: (host, Fleet(host, Progress(enabled=False))))
"""
SUITE = """
import pytest
from harness.errors import HarnessError
from harness.guest.choice import MissingDevicesError, choose
from harness.guest.description import GuestSpec, SmmuSpec
from harness.host.ability import READER

ONE = GuestSpec(smmus=(SmmuSpec(devices=(READER,)),))

@pytest.mark.guest(ONE)
def test_guest(guest): ...

@pytest.mark.guest(ONE, ONE)
def test_guests(guests): ...

@pytest.mark.guest(ONE)
def test_source(reader): ...

@pytest.mark.guest(ONE)
def test_fleet(fleet):
    with fleet.guests([ONE]):
        pass

@pytest.fixture
def own(fleet):
    with fleet.guests([ONE]) as guests:
        yield guests

@pytest.mark.guest(ONE)
def test_fixture(own): ...

def test_needs_no_device(host): ...

@pytest.mark.xfail(raises=MissingDevicesError, strict=True)
def test_choice():
    choose("bare", [ONE.needs], [])

def test_undeclared(fleet):
    with pytest.raises(HarnessError, match="other devices than it declares: a device that"):
        with fleet.guests([ONE]):
            pass
"""


def test_it_is_skipped_however_it_asks(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_asking.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = guest\n")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "--junitxml=junit.xml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    cases = ElementTree.parse(tmp_path / "junit.xml").getroot().findall(".//testcase")
    skipped = {case.get("name"): [one.get("message") for one in case] for case in cases}
    why = "host bare does not have, behind one SMMU: a device that can read"
    asking = ("guest", "guests", "source", "fleet", "fixture")
    assert skipped == {
        **{f"test_{how}": [why] for how in asking},
        "test_needs_no_device": [],
        "test_choice": [""],  # it failed, as it should
        "test_undeclared": [],
    }
