"""Tests run on every combination of kernels. A combination that fails does not stop the others,
and one that has run is not run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from harness.artifacts import kernel, stack
from harness.artifacts.parts import UNKNOWN, KernelSource, StackWish
from harness.artifacts.store import MANIFEST, Store
from harness.cli import app
from harness.commands.cross import kernels_of_the_stack
from harness.errors import HarnessError
from harness.kernel_image import KernelImage
from harness.matrix import crossing
from harness.progress import Progress
from harness.waiting import wait_for
from tests.suite_run import PLUGINS, ROOT, write_suite
from tests.test_matrix import Page, image

#: A suite on a host that runs the kernels which the run is given.
SUITE = """
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import ProductError
from harness.host.host import Facts
from harness.kernel_image import KernelImage
from harness.lab.software import Software

@pytest.fixture
def host(request, host_name):
    option = request.config.getoption
    software = Software.named(None, option("--guest-kernel"), option("--host-kernel"))
    kernels = [software.host_image, software.guest_file and KernelImage.read(software.guest_file)]
    releases = [image.release if image else "7.2.12-own" for image in kernels]
    return SimpleNamespace(
        name=host_name,
        facts=Facts(releases[0], "11.1.3", releases[1], frozenset()),
        files=SimpleNamespace(firmware="/firmware"),
        digests={},
        capabilities=frozenset(),
        kernel_log=lambda: "",
    )

@pytest.mark.covers("VEQ-07")
def test_new_guest(host):
    with Path(os.environ["RAN"]).open("a") as ran:
        ran.write(f"{host.facts.host_kernel} {host.facts.guest_kernel}\\n")
    if host.facts.guest_kernel.startswith("7.3"):
        raise ProductError("no record")

@pytest.mark.covers("VEQ-08")
def test_dies(host):
    if host.facts.host_kernel == os.environ.get("DIES"):
        os._exit(9)

@pytest.mark.covers("VEQ-09")
def test_waits(host):
    if host.facts.host_kernel == os.environ.get("WAITS"):
        Path(os.environ["RAN"]).with_name("waits").write_text(str(os.getpid()))
        threading.Event().wait(120)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a suite and four kernels, and with a npm that installs nothing, so that
    no run has a report."""
    write_suite(tmp_path, SUITE)
    for name in ("7.2.12", "7.3.4"):
        image(tmp_path / f"host-{name}", f"{name}-host")
        image(tmp_path / f"guest-{name}", f"{name}-guest")
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text("#!/bin/sh\nexit 1\n")
    npm.chmod(0o755)
    return tmp_path


HOSTS = ("--host-kernel=host-7.2.12", "--host-kernel=host-7.3.4")
GUESTS = ("--guest-kernel=guest-7.2.12", "--guest-kernel=guest-7.3.4")


def started(
    folder: Path, *arguments: str, more: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTEST_ADDOPTS": " ".join(PLUGINS),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "HIL_CACHE": str(folder / "cache"),
        "RAN": str(folder / "ran"),
        **(more or {}),
    }
    command = [sys.executable, "-m", "harness.cli", "cross", "--out=matrix", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def called(
    folder: Path, *arguments: str, more: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Call `hil cross`, and return its exit status and what it printed."""
    with started(folder, *arguments, more=more) as process:
        out, err = process.communicate()
    return process.returncode, out, err


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().splitlines()


ALL = [
    f"{host}-host {guest}-guest" for host in ("7.2.12", "7.3.4") for guest in ("7.2.12", "7.3.4")
]


def test_all_combinations_run_once(folder: Path) -> None:
    status, out, err = called(folder, *HOSTS, *GUESTS, "suites")
    assert status == 1, out + err
    assert ran(folder) == ALL
    assert out.count("FAILED (1 product)") == out.count("PASSED: 3 passed") == 2
    shown = Page((folder / "matrix" / "matrix.html").read_text())
    assert [cell["class"] for cell in shown.cells("VEQ-07")[2:]] == ["passed", "product"] * 2
    assert [cell["text"] for cell in shown.cells("VEQ-08")[2:]] == ["passed"] * 4
    heads = [cell["text"] for cell in shown.tables["stacks"][2][:4]]
    assert heads == ["B", "7.2.12-host", "7.3.4-guest", "11.1.3"]
    # Nothing is left to run, and the page is made again.
    (folder / "matrix" / "matrix.html").unlink()
    status, out, _ = called(folder, *HOSTS, *GUESTS, "suites")
    assert status == 1
    assert ran(folder) == ALL
    assert out.count(": has run\n") == 4
    assert Page((folder / "matrix" / "matrix.html").read_text()).cells("VEQ-07")
    # Other tests are another question, and so are kernels of other content.
    assert called(folder, *GUESTS[:1], "suites", "-knew_guest")[0] == 0
    image(folder / "guest-7.2.12", "7.2.12-guest", b"changed")
    assert called(folder, *GUESTS[:1], "suites", "-knew_guest")[0] == 0
    assert called(folder, *GUESTS[:1], "suites", "-knew_guest")[0] == 0
    assert called(folder, *GUESTS[:1], "suites", "-knew_guest", "--fresh")[0] == 0
    assert ran(folder)[4:] == ["7.2.12-own 7.2.12-guest"] * 3


def test_a_combination_without_results_does_not_stop_the_others(folder: Path) -> None:
    more = {"DIES": "7.2.12-host"}
    status, out, err = called(folder, *HOSTS, *GUESTS[:1], "suites", more=more)
    assert status == 1, out + err
    assert ran(folder) == ["7.2.12-host 7.2.12-guest", "7.3.4-host 7.2.12-guest"]
    assert "left no results: status 9; " in out
    assert "left no results, and is not in the page: host kernel 7.2.12-host, sha256 " in out
    # It is tried again, and the other one is not.
    status, out, err = called(folder, *HOSTS, *GUESTS[:1], "suites")
    assert status == 0, out + err
    assert ran(folder)[2:] == ["7.2.12-host 7.2.12-guest"]
    # A run that leaves none is not replaced by an earlier one.
    fresh = [*HOSTS[:1], *GUESTS[:1], "suites"]
    status, out, err = called(folder, *fresh, "--fresh", more=more)
    assert status == 2, out + err
    assert "no combination left results" in err


def interrupted(folder: Path, number: signal.Signals) -> tuple[int, str, str]:
    """Interrupt `hil cross` in its second combination."""
    (folder / "waits").unlink(missing_ok=True)
    more = {"WAITS": "7.3.4-host"}
    with started(folder, *HOSTS, *GUESTS[:1], "suites", more=more) as process:
        waits = folder / "waits"
        wait_for("the second combination", waits.exists, deadline=300)
        pytest_run = psutil.Process(int(wait_for("its pid", waits.read_text, deadline=60)))
        process.send_signal(number)
        out, err = process.communicate()
    wait_for("pytest to end", lambda: not pytest_run.is_running(), deadline=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_it_goes_on_after_an_interruption(
    folder: Path, number: signal.Signals, status: int
) -> None:
    ended, out, err = interrupted(folder, number)
    assert ended == status, out + err
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert "stopped after 1 of 2 combinations; to go on: `hil cross --out=matrix" in err
        # The run was given the time to write its results.
        results = [json.loads(one.read_text()) for one in folder.glob("matrix/*/*/result.json")]
        assert sorted(one["broken"] for one in results) == ["", "interrupted"]
    (folder / "ran").unlink()
    assert called(folder, *HOSTS, *GUESTS[:1], "suites")[0] == 0
    assert ran(folder) == ["7.3.4-host 7.2.12-guest"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host-kernel=nosuch"], "--host-kernel: no file nosuch on this machine"),
        (["--guest-kernel=pytest.ini"], "--guest-kernel: pytest.ini is no kernel for arm64"),
        ([*HOSTS, "--qemu=pytest.ini"], "--qemu: pytest.ini is no program"),
        ([*HOSTS, "--report"], "--report: each combination has its own"),
        (
            [*HOSTS, "suites", "--host=nosuch"],
            "pytest cannot run these tests: --host: lab virtual ",
        ),
        ([*HOSTS, "suites", "-knothing"], "pytest cannot run these tests: "),
    ],
)
def test_a_wrong_call_runs_nothing(folder: Path, arguments: list[str], said: str) -> None:
    status, out, err = called(folder, *arguments)
    assert status == 2, out + err
    assert f"hil: {said}" in err
    assert not (folder / "ran").exists()
    assert not list(folder.glob("matrix/*/*/result.json"))


def test_the_sample_runs_unless_tests_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab.yaml").write_text("")
    (tmp_path / "suites").mkdir()
    monkeypatch.chdir(tmp_path)
    sample = [str(ROOT / one) for one in crossing.SAMPLE]
    assert all(Path(one).exists() for one in sample)
    assert crossing.chosen([]) == sample
    assert crossing.chosen(["--lab", "lab.yaml", "-k", "burst"]) == [
        *sample, "--lab", "lab.yaml", "-k", "burst",
    ]  # fmt: skip
    named = ["-k", "burst", str(ROOT / "suites/data") + "::test_x"]
    assert crossing.chosen(named) == named
    assert crossing.chosen(["suites"]) == ["suites"]
    # Values of options are no tests, wherever the command is called.
    monkeypatch.chdir(ROOT / "suites/data")
    assert crossing.chosen(["-k", "burst", "-n2"]) == [*sample, "-k", "burst", "-n2"]
    for tests in ("../data", "."):
        assert crossing.chosen([tests]) == [tests]


def test_a_kernel_that_is_given_twice_is_one(folder: Path) -> None:
    image(folder / "copy", "7.2.12-host")
    twice = [folder / "copy", folder / "host-7.2.12"]
    assert len(crossing.combinations(twice, [], [], ())) == 1


def test_the_kernels_of_the_stack_are_crossed_if_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stack with one kernel has nothing to cross; of one with two, both are."""
    monkeypatch.setenv("HIL_CACHE", str(tmp_path))
    monkeypatch.delenv("HIL_STACK", raising=False)
    stack.write_down(tmp_path, StackWish(), UNKNOWN)
    alone = CliRunner().invoke(app, ["cross", "suites"])
    assert isinstance(alone.exception, HarnessError)
    assert "there is nothing to cross: no kernel is given" in alone.exception.message

    sources = [KernelSource(f"linux-source-{one}", f"{one}.1", "here") for one in ("7.3", "7.2")]
    stack.write_down(tmp_path, StackWish(), replace(UNKNOWN, linux=tuple(sources)))
    for source in sources:
        entry = Store().path(kernel.recipe(source, Progress(enabled=False)))
        entry.mkdir()
        image(entry / kernel.IMAGE, f"{source.version}-own")
        (entry / MANIFEST).write_text(json.dumps({"packages": {}}))
    releases = [KernelImage.read(path).release for path in kernels_of_the_stack()]
    assert releases == ["7.3.1-own", "7.2.1-own"]
