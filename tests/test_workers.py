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
    options = ["-n2", "--dist=loadgroup", "-ptests.no_run", f"--out={tmp_path / 'out'}"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "suites", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_RUN": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    logs = [(tmp_path / worker).read_text().split() for worker in ("gw0", "gw1")]
    hosts = [set(log[::2]) for log in logs]
    assert not hosts[0] & hosts[1], ended.stdout
    assert {"first", "vgrace-cmdqv"} <= hosts[0] | hosts[1]
    assert len({seed for log in logs for seed in log[1::2]}) == 1


#: Two groups of tests, one of which fails. The second group's tests are behind it.
NAMES = """
import pytest
first, second = pytest.mark.xdist_group("first"), pytest.mark.xdist_group("second")

@first
def test_passes(): pass

@first
@pytest.mark.parametrize("where", ["a@b", "c"])
def test_fails(where): assert where == "c"

@second
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
    groups = ("-n2", "--dist=loadgroup")
    ended = run_suite(tmp_path, *groups)
    assert "suites/test_suite.py::test_fails[a@b]" in ended.stdout
    (run,) = (tmp_path / "out").iterdir()
    assert {f"{T}test_fails[a@b]", f"{T}test_fails[c]", f"{T}test_alone"} < set(results(run))
    tests = ("test_passes", "test_fails[a@b]", "test_fails[c]", "test_other", "test_alone")
    assert names(tmp_path) == {f"suites.test_suite::{test}" for test in tests}
    # What failed with workers fails again without, and the reverse.
    for options in ((), groups):
        run_suite(tmp_path, "--lf", *options)
        assert names(tmp_path) == {"suites.test_suite::test_fails[a@b]"}


#: The second test of a group kills its worker, as a machine that runs out of memory does.
KILLED = """
import os, signal
import pytest
pytestmark = pytest.mark.xdist_group("grace-1")

def test_before(): pass

@pytest.mark.covers("VEQ-01")
def test_kills_its_worker(): os.kill(os.getpid(), signal.SIGKILL)

def test_after(): pass

def test_product(): assert 1 == 2
"""


def test_a_killed_worker_loses_no_result(tmp_path: Path) -> None:
    ended = run_suite(write_suite(tmp_path, KILLED), "-n2", "--dist=loadgroup")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    (run,) = (tmp_path / "out").iterdir()
    tests = results(run)
    assert {
        name.removeprefix(T): (one["outcome"], one["blame"]) for name, one in tests.items()
    } == {
        "test_before": ("passed", ""),
        "test_kills_its_worker": ("failed", "harness"),
        "test_after": ("passed", ""),
        "test_product": ("failed", "product"),
    }
    killed = tests[f"{T}test_kills_its_worker"]
    worker = re.fullmatch(
        rf"worker crashed: (gw\d) ended while it ran {T}test_kills_its_worker", killed["message"]
    )
    assert worker
    assert killed["covers"] == ["VEQ-01"]
    assert f"{T}test_kills_its_worker --host=grace-1" in killed["again"]
    summary = (run / "summary.md").read_text()
    assert summary.startswith("**FAILED (1 product, 1 harness)**: 2 passed, 2 failed")
    assert f"worker {worker[1]} knew of its host: it crashed" in summary
    shown = [json.loads(one.read_text()) for one in run.glob("allure-results/*-result.json")]
    (page,) = [one for one in shown if one["name"] == "test_kills_its_worker"]
    assert page["status"] == "broken"
    assert {"name": "category", "value": "harness"} in page["labels"]
    cases = ElementTree.parse(run / "junit.xml").getroot().findall(".//testcase")
    assert [case.get("name") for case in cases].count("test_kills_its_worker") == 1
