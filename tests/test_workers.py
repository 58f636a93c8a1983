"""In a run on several hosts each worker has all tests of its hosts, all get the same seed, tests
have the names that they have without workers, and a worker that is killed loses nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from tests.suite_run import results, run_suite, write_suite

T = "suites/test_suite.py::"
ROOT = Path(__file__).parents[1]


def test_workers_share_no_host(tmp_path: Path) -> None:
    options = ["-n2", "-ptests.no_run", f"--out={tmp_path / 'out'}"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "suites", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_RUN": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    logs = [
        [line.split(maxsplit=2) for line in (tmp_path / worker).read_text().splitlines()]
        for worker in ("gw0", "gw1")
    ]
    hosts = [{line[0] for line in log} - {"-"} for log in logs]
    # What only one host can run has one worker; both have a part of what two hosts can.
    assert hosts[0] & hosts[1] == {"vgrace,vgrace-2"}, ended.stdout
    assert "vgrace-cmdqv" in hosts[0] | hosts[1]
    assert len({seed for log in logs for _, seed, _ in log}) == 1
    ran = [test for log in logs for _, _, test in log]
    assert len(ran) == len(set(ran))
    # A host that is made for few tests runs no others.
    for special, count in (("vgrace-few-sids", 1), ("vgrace-other-version", 1)):
        assert [line[0] for log in logs for line in log].count(special) == count


#: Tests of two hosts, one of which fails. No host is reached.
NAMES = """
import pytest

@pytest.fixture
def host(host_name): ...

@pytest.fixture
def _ran_on(): ...

def test_passes(host): pass

@pytest.mark.parametrize("where", ["a@b", "c"])
def test_fails(host, where): assert where == "c"

def test_other(): pass

def test_alone(): pass
"""


def names(folder: Path) -> set[str]:
    (junit,) = folder.glob("out/*/junit.xml")
    cases = ElementTree.parse(junit).getroot().findall(".//testcase")
    shutil.rmtree(folder / "out")
    return {f"{case.get('classname')}::{case.get('name')}" for case in cases}


def test_names_do_not_change_with_workers(tmp_path: Path) -> None:
    write_suite(tmp_path, NAMES)
    workers = ("-n2",)
    ended = run_suite(tmp_path, *workers)
    assert "suites/test_suite.py::test_fails[a@b]" in ended.stdout
    (run,) = (tmp_path / "out").iterdir()
    assert {f"{T}test_fails[a@b]", f"{T}test_fails[c]", f"{T}test_alone"} < set(results(run))
    tests = ("test_passes", "test_fails[a@b]", "test_fails[c]", "test_other", "test_alone")
    assert names(tmp_path) == {f"suites.test_suite::{test}" for test in tests}
    # What failed with workers fails again without, and the reverse.
    for options in ((), workers):
        run_suite(tmp_path, "--lf", *options)
        assert names(tmp_path) == {"suites.test_suite::test_fails[a@b]"}


#: Tests kill their workers, as a machine that runs out of memory does. All need the same host, so
#: that one worker has them; no host is reached.
KILLED = """
import os, signal
import pytest

@pytest.fixture
def host(host_name): ...

@pytest.fixture
def _ran_on(): ...

@pytest.fixture
def kills_at_its_end():
    yield
    os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.usefixtures("host")
class TestHost:
    def test_before(self): pass

    @pytest.mark.covers("VEQ-01")
    def test_kills_its_worker(self): os.kill(os.getpid(), signal.SIGKILL)

    def test_after(self): pass

    def test_product(self): assert 1 == 2

    @pytest.mark.usefixtures("kills_at_its_end")
    def test_both(self): assert 1 == 2, "a wrong record"
"""


def test_a_killed_worker_loses_no_result(tmp_path: Path) -> None:
    ended = run_suite(write_suite(tmp_path, KILLED), "-n2")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    (run,) = (tmp_path / "out").iterdir()
    tests = results(run)
    assert {
        name.removeprefix(f"{T}TestHost::"): (one["outcome"], one["blame"])
        for name, one in tests.items()
    } == {
        "test_before": ("passed", ""),
        "test_kills_its_worker": ("failed", "harness"),
        "test_after": ("passed", ""),
        "test_product": ("failed", "product"),
        "test_both": ("failed", "product"),
    }
    killed = tests[f"{T}TestHost::test_kills_its_worker"]
    worker = re.fullmatch(
        rf"worker crashed: (gw\d) ended while it ran {T}TestHost::test_kills_its_worker",
        killed["message"],
    )
    assert worker
    assert killed["covers"] == ["VEQ-01"]
    # Its host is known if the worker has run a test before.
    again = rf".* {T}TestHost::test_kills_its_worker( --host=vgrace(-2)?)?"
    assert re.fullmatch(again, killed["again"])
    # What had failed before the worker was killed is not lost, and counts.
    first, _, then = tests[f"{T}TestHost::test_both"]["message"].partition("and then, at its end:")
    assert "a wrong record" in first
    assert "worker crashed: " in then
    summary = (run / "summary.md").read_text()
    assert summary.startswith("**FAILED (2 product, 1 harness)**: 2 passed, 3 failed")
    assert f"what worker {worker[1]} knew of its host" in summary
    assert "knew of its host: it crashed" in summary
    shown = [json.loads(one.read_text()) for one in run.glob("allure-results/*-result.json")]
    for name, status, category in (
        ("test_kills_its_worker", "broken", "harness"),
        ("test_both", "failed", "product"),
    ):
        (page,) = [one for one in shown if one["name"] == name]
        assert page["status"] == status
        assert {"name": "category", "value": category} in page["labels"]
    cases = ElementTree.parse(run / "junit.xml").getroot().findall(".//testcase")
    assert [case.get("name") for case in cases].count("test_kills_its_worker") == 1
