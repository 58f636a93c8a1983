"""The exit status of a run says whom its failures point to, with workers and without."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.suite_run import PLUGINS, ROOT, run_suite

SUITE = """
import pytest
from harness.errors import HarnessError, LabError
from harness.fixtures.guests import KEPT

def test_passes():
    pass

@pytest.mark.xfail(reason="a defect that comes and goes", strict=False)
def test_passes_although_it_may_fail():
    pass

def test_product():
    assert [1] == [2], "a wrong record"

@pytest.fixture
def provisioned():
    raise LabError("no such device", fix="plug it in")

def test_lab(provisioned):
    pass

def test_harness():
    {}["missing"]

@pytest.fixture
def given_back():
    yield
    raise LabError("the host is not given back", fix="look at it")

def test_both(given_back):
    assert [1] == [2], "a wrong record"

def test_end(given_back):
    pass

def test_kept(request):
    request.config.stash[KEPT] = ["kept running on host one"]
    request.session.shouldfail = "a guest was kept (--keep)"
    assert [1] == [2], "a wrong record"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    suites = tmp_path / "suites"
    suites.mkdir()
    (suites / "test_kinds.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def pytest_run(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run the suite in a folder with all fixtures of the project; return its result and the folder
    of the run."""
    ended = run_suite(folder, *options)
    (run,) = (folder / "out").iterdir()
    return ended, run


@pytest.mark.parametrize(
    ("workers", "chosen", "status", "verdict"),
    [
        (0, "passes", 0, "**PASSED**: 2 passed"),
        (0, "product or lab", 1, "**FAILED (1 product, 1 lab)**"),
        (2, "product or lab", 1, "**FAILED (1 product, 1 lab)**"),
        (0, "harness or lab", 10, "**FAILED (1 lab, 1 harness)**"),
        (0, "lab", 11, "**FAILED (1 lab)**"),
        (0, "end", 11, "**FAILED (1 lab)**"),
    ],
)
def test_status(folder: Path, workers: int, chosen: str, status: int, verdict: str) -> None:
    ended, run = pytest_run(folder, "-k", chosen, f"-n{workers}")
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert (run / "summary.md").read_text().startswith(verdict)
    tests = json.loads((run / "result.json").read_text())["tests"]
    assert [f"1 {test['blame']}" in verdict for test in tests if test["outcome"] != "passed"] == [
        True
    ] * len(chosen.split(" or ") if status else [])
    cases = ElementTree.parse(run / "junit.xml").getroot().findall(".//testcase")
    assert len(cases) == len(tests)


@pytest.mark.parametrize("options", [("-kkept",), ("-kproduct", "-x")], ids=" ".join)
def test_workers_that_stop_at_a_failure_are_not_interrupted(
    folder: Path, options: tuple[str, ...]
) -> None:
    """Nor are they without workers. How to connect to a guest that a worker kept is printed."""
    ended, run = pytest_run(folder, "-n1", *options)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert (run / "summary.md").read_text().startswith("**FAILED (1 product)**")
    assert ended.stdout.count("kept running on host one\n") == options.count("-kkept")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_test_that_failed_is_not_hidden_by_its_end(folder: Path, workers: int) -> None:
    ended, run = pytest_run(folder, "-k", "both", f"-n{workers}")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert (run / "summary.md").read_text().startswith("**FAILED (1 product)**")
    (test,) = json.loads((run / "result.json").read_text())["tests"]
    assert (test["outcome"], test["blame"]) == ("failed", "product")
    first, _, then = test["message"].partition("and then, at its end:")
    assert "a wrong record" in first
    assert "the host is not given back" in then


GONE = """
def test_first(host): pass
def test_second(host): pass
def test_third(host): pass
def test_without(): pass
"""


def test_a_host_that_does_not_open_is_out_and_hides_nothing_else(folder: Path) -> None:
    """Two tests try to open the host and fail for the lab. The third is not run, and a test that
    needs no host runs."""
    (folder / "suites" / "test_kinds.py").write_text(GONE)
    key = folder / "key"
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    (folder / "known_hosts").write_text("")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # it never listens, so connections are refused
        port = nobody.getsockname()[1]
        (folder / "lab.yaml").write_text(
            "lab: gone\nhosts:\n  - name: one\n    address: 127.0.0.1\n"
            f"    port: {port}\n    user: root\n    key: {key}\n"
            f"    known_hosts: {folder / 'known_hosts'}\n    guest_kernel: /k\n"
            '    guest_initrd: /i\n    devices:\n      - {bdf: "0000:09:00.0", role: edu}\n'
        )
        ended, run = pytest_run(folder, "--lab=lab.yaml")
    assert ended.returncode == 11, ended.stdout + ended.stderr
    tests = json.loads((run / "result.json").read_text())["tests"]
    outcomes = [(test["outcome"], test["blame"]) for test in tests]
    assert outcomes == [("failed", "lab"), ("failed", "lab"), ("not run", ""), ("passed", "")]
    summary = (run / "summary.md").read_text()
    assert summary.startswith("**FAILED (2 lab)**: 1 passed, 2 failed, 0 skipped, 1 not run")
    assert "host one is given up" in summary


INTERRUPTED = """
import pytest

@pytest.fixture(scope="session", autouse=True)
def given_back():
    yield
    raise KeyboardInterrupt

def test_passes():
    pass

def test_is_interrupted():
    raise KeyboardInterrupt

def test_is_not_run():
    pass
"""


def test_a_second_interruption_loses_neither_status_nor_results(folder: Path) -> None:
    """It comes while the run gives its hosts back. A person sees no traceback of ours."""
    (folder / "suites" / "test_kinds.py").write_text(INTERRUPTED)
    ended, run = pytest_run(folder)
    assert ended.returncode == pytest.ExitCode.INTERRUPTED, ended.stdout + ended.stderr
    assert (run / "summary.md").read_text().startswith("**FAILED (interrupted)**: 1 passed")
    assert "interrupted again: " in ended.stderr
    assert "Traceback" not in ended.stderr


#: What may take long after the results are there is interrupted, each thing by itself.
INTERRUPTING = """
from harness.artifacts import leashed
from harness.report import history, site

def interrupt(*_, **__):
    raise KeyboardInterrupt

history.of_run = site.generate = leashed.run = interrupt
"""


def test_interruptions_after_the_tests_lose_neither_status_nor_results(folder: Path) -> None:
    (folder / "conftest.py").write_text(INTERRUPTING)
    ended, run = pytest_run(folder, "-kharness", "--report", "--notify=true")
    assert ended.returncode == 10, ended.stdout + ended.stderr
    summary = (run / "summary.md").read_text()
    assert summary.startswith("**FAILED (1 harness)**")
    assert "flaky tests, page of the report: interrupted" in summary
    assert "the report was not made: interrupted" in ended.stderr
    assert "--notify failed: interrupted; " in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("def test_it(): raise KeyboardInterrupt\n", pytest.ExitCode.INTERRUPTED),
        ("import no_such_module\n", pytest.ExitCode.INTERRUPTED),
    ],
)
def test_a_project_without_labs_has_no_run_however_it_ends(
    tmp_path: Path, source: str, status: pytest.ExitCode
) -> None:
    (tmp_path / "test_it.py").write_text("def test_sums(): pass\n")
    (tmp_path / "test_other.py").write_text(source)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    ended = run_suite(tmp_path, chosen=".")
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert "results:" not in ended.stdout
    assert "junit.xml" not in ended.stdout
    assert not (tmp_path / "out").exists()


IN_THREAD = """
import sys, threading, pytest
ended = []
thread = threading.Thread(target=lambda: ended.append(pytest.main(sys.argv[1:])))
thread.start()
thread.join()
sys.exit(int(ended[0]))
"""


def test_a_program_may_call_pytest_in_a_thread(tmp_path: Path) -> None:
    """Signals are the main thread's then."""
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    ended = subprocess.run(
        [sys.executable, "-c", IN_THREAD, *PLUGINS, "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout
