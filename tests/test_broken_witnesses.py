"""Nothing that fails beside a test ends the run or loses a result: a witness, an attachment, a
file, the check of a host. What could not be had is told."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.suite_run import results, run_suite, write_suite

#: A host and a guest that cannot be had on this machine. Every witness fails in its own way, and so
#: does the check of the host.
SUITE = """
from types import SimpleNamespace

import pytest
from harness.fixtures import lab
from harness.fixtures.guests import GUESTS
from harness.errors import LabError
from harness.report import site

# No behaviour has a page.
site.behaviour_link = lambda name: {}[name]

class Broken:
    name = "guest0"
    @property
    def paths(self): return {}[0]
    @property
    def journal(self): raise UnicodeError("odd")

class Hosts:
    closing = fleet = None
    def check(self): [].pop()

@pytest.fixture
def hosts(request):
    request.config.stash[lab.HOSTS] = Hosts()
    return Hosts()

@pytest.fixture
def host(request):
    request.node.stash[GUESTS] = [Broken()]
    facts = SimpleNamespace(host_kernel="7.2", qemu="11.1", guest_kernel="7.2")
    def run(*_, **__): [][1]
    return SimpleNamespace(
        name="one", facts=facts, files=SimpleNamespace(firmware="f"), capabilities=(), digests={},
        connection=SimpleNamespace(run=run), description=SimpleNamespace(silicon=None),
        console=None,
    )

def test_fails(host): assert 1 == 2, "no UTF-8: \\udc80, \\x00"

def test_loses_its_host(host): raise LabError("gone")

class Unspeakable(Exception):
    def __str__(self): raise KeyError("no words")

def test_raises_what_has_no_text(host): raise Unspeakable

@pytest.mark.covers("VEQ-01")
def test_covers_what_has_no_page(): pass

@pytest.mark.parametrize("text", ["a" * 300, "b/c::d", "e\\x80é", "f@g", "h\\x00"])
def test_names(text): assert text == ""

def test_passes_after_all(): pass
"""
T = "suites/test_suite.py::"


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_every_test_has_its_result_and_what_is_missing_is_told(
    tmp_path: Path, workers: str
) -> None:
    ended = run_suite(write_suite(tmp_path, SUITE), workers)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "INTERNALERROR" not in ended.stdout
    (run,) = (tmp_path / "out").iterdir()
    tests = results(run)
    outcomes = {name.removeprefix(T): test["outcome"] for name, test in tests.items()}
    names = [name for name in outcomes if name.startswith("test_names[")]
    assert len(names) == 5
    assert outcomes == {
        "test_fails": "failed",
        "test_loses_its_host": "failed",
        "test_raises_what_has_no_text": "failed",
        "test_covers_what_has_no_page": "passed",
        **dict.fromkeys(names, "failed"),
        "test_passes_after_all": "passed",
    }
    assert tests[f"{T}test_fails"]["notes"] == [
        "timeline, notes on guests: UnicodeError: odd",
        "host kernel log: IndexError: list index out of range",
        "evidence: KeyError: 0",
        "check of the host: IndexError: pop from empty list",
    ]
    assert tests[f"{T}test_loses_its_host"]["notes"][3:] == [
        "check of the host: IndexError: pop from empty list"
    ]
    assert tests[f"{T}test_covers_what_has_no_page"]["notes"] == [
        "labels of Allure's page: KeyError: 'VEQ-01'"
    ]
    assert tests[f"{T}test_passes_after_all"]["notes"] == []

    summary = (run / "summary.md").read_text()
    assert "`host kernel log: IndexError: list index out of range`" in summary
    assert "--- What could not be had ---" in ended.stdout
    folders = list((run / "logs").iterdir())
    assert len(folders) == 8
    (fails,) = [one for one in folders if one.name.startswith("test_suite.py-test_fails-")]
    assert (fails / "host_kernel_log.txt").read_text() == (
        "not available: IndexError: list index out of range"
    )
    cases = ElementTree.parse(run / "junit.xml").getroot().findall(".//testcase")
    assert len(cases) == len(tests)
    shown = list((run / "allure-results").glob("*-result.json"))
    assert len(shown) == len(tests)


#: The disk of the run's folder is full from its first test on; in one case until its last.
FULL = """
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

def test_fills_the_disk(request):
    with Path("disk/filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

@pytest.fixture
def host():
    facts = SimpleNamespace(host_kernel="7.2", qemu="11.1", guest_kernel="7.2")
    connection = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(text="a log"))
    return SimpleNamespace(
        name="one", facts=facts, files=SimpleNamespace(firmware="f"), capabilities=(), digests={},
        connection=connection, description=SimpleNamespace(silicon=None), console=None,
    )

def test_fails(host): assert os.environ["FAILS"] == ""

def test_frees_the_disk():
    if os.environ["FREES"]:
        Path("disk/filler").unlink()
"""


def full_disk(folder: Path, **more: str) -> tuple[int, str]:
    """Run the suite with its run folder on a small disk; return the exit status, and what was
    printed. Keep the run's folder in `kept`."""
    write_suite(folder, FULL)
    for name in ("disk", "kept", "tmp"):
        (folder / name).mkdir()
    # A mount namespace of its own: the disk goes with the run.
    script = (
        'mount -t tmpfs -o size=600k none disk && "$@"; status=$?; rm -f disk/filler; '
        "cp -r disk/. kept; exit $status"
    )
    inside = ["unshare", "--mount", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    more["TMPDIR"] = str(folder / "tmp")
    ended = run_suite(folder, "--out=disk", "-pno:cacheprovider", inside=inside, **more)
    return ended.returncode, ended.stdout + ended.stderr


def test_a_full_disk_loses_files_and_no_result(tmp_path: Path) -> None:
    status, said = full_disk(tmp_path, FAILS="yes", FREES="yes")
    assert status == 1, said
    assert "INTERNALERROR" not in said
    (run,) = (tmp_path / "kept").iterdir()
    assert {name: test["outcome"] for name, test in results(run).items()} == {
        f"{T}test_fills_the_disk": "passed",
        f"{T}test_fails": "failed",
        f"{T}test_frees_the_disk": "passed",
    }
    assert results(run)[f"{T}test_fails"]["notes"] == [
        "file host_kernel_log.txt: [Errno 28] No space left on device"
    ]
    summary = (run / "summary.md").read_text()
    assert "result of test_fails on Allure's page: " in summary
    assert "No space left on device" in summary
    assert (run / "junit.xml").stat().st_size


@pytest.mark.parametrize(("fails", "expected"), [("yes", 1), ("", 11)])
def test_results_that_cannot_be_written_are_elsewhere(
    tmp_path: Path, fails: str, expected: int
) -> None:
    status, said = full_disk(tmp_path, FAILS=fails, FREES="")
    assert status == expected, said
    assert "INTERNALERROR" not in said
    assert f"no results in {tmp_path}/disk/" in said
    assert "No space left on device" in said
    (folder,) = (tmp_path / "tmp").glob("hil-*")
    assert f"results: {folder}" in said
    tests = results(folder)
    names = ("fills_the_disk", "fails", "frees_the_disk")
    assert list(tests) == [f"{T}test_{name}" for name in names]
    assert "junit.xml" in (folder / "summary.md").read_text()


def test_an_interrupted_run_did_not_pass(tmp_path: Path) -> None:
    suite = "def test_passes(): pass\ndef test_is_stopped(): raise KeyboardInterrupt\n"
    ended = run_suite(write_suite(tmp_path, suite))
    assert ended.returncode == pytest.ExitCode.INTERRUPTED
    (run,) = (tmp_path / "out").iterdir()
    assert (run / "summary.md").read_text().startswith("**FAILED (interrupted)**: 1 passed")


def test_a_timeout_in_the_evidence_ends_that_only(tmp_path: Path) -> None:
    slow = "def run(*_, **__): __import__('time').sleep(9)"
    suite = SUITE.replace("def run(*_, **__): [][1]", slow)
    ended = run_suite(write_suite(tmp_path, suite), "-ktest_fails", "--timeout=2")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    (run,) = (tmp_path / "out").iterdir()
    (test,) = results(run).values()
    assert test["outcome"] == "failed"
    assert "host kernel log: Failed: Timeout (>2.0s) from pytest-timeout." in test["notes"]


def test_a_page_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """There is neither npm, which installs Allure, nor git, which tells the revision."""
    write_suite(tmp_path, "def test_passes(): pass\n")
    ended = run_suite(tmp_path, "--report", PATH="/nowhere", HIL_CACHE=str(tmp_path / "cache"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "the report was not made: npm is missing" in ended.stderr
    (run,) = (tmp_path / "out").iterdir()
    assert f"results: {run}" in ended.stdout
    summary = (run / "summary.md").read_text()
    assert summary.startswith("**PASSED**: 1 passed")
    assert "- `page of the report: npm is missing: it installs Allure" in summary
