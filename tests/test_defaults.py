"""A user's defaults stand in a file or in the environment, and every command that names no lab has
them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.checkout import ROOT
from harness.commands.options import with_lab
from harness.errors import HarnessError
from harness.lab import defaults
from tests.suite_run import PLUGINS, run_suite, write_suite

INVENTORY = """
lab: {name}
hosts:
  - name: {name}-1
    address: {name}.example
    key: k
    known_hosts: h
    qemu: /q
    firmware: /f
    guest_kernel: /g
    guest_initrd: /i
"""

SUITE = """
import pytest

@pytest.fixture
def _ran_on(): pass

def test_names_its_host(host_name): assert not host_name
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a user's defaults, with inventories of two labs."""
    folder = tmp_path / "config" / "hil"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        (folder / f"{name}.yaml").write_text(INVENTORY.format(name=name))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder.parent))
    monkeypatch.setenv("HIL_CACHE", "/elsewhere")
    for variable in ("HIL_LAB", "HIL_STACK"):
        # So that it is as it was after the test.
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    return folder


def test_the_environment_takes_precedence(home: Path) -> None:
    text = "lab: one.yaml\ncache: ~/cache\nstack: linux=7.2\n"
    (home / "defaults.yaml").write_text(text)
    defaults.apply()
    assert defaults.lab() == home / "one.yaml"
    assert (os.environ["HIL_CACHE"], os.environ["HIL_STACK"]) == ("/elsewhere", "linux=7.2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("labs: one.yaml\n", "defaults.yaml:1: labs: unknown field; did you mean lab?; allowed: "),
        ("stack: 7.2\n", "defaults.yaml:1: stack: found 7.2; allowed: what virtual labs are built"),
        ("lab:\n  - one.yaml\n", "lab: found ['one.yaml']; allowed: path of an inventory"),
        ("- lab\n", "found ['lab']; allowed: a mapping"),
        ("lab: ~nobody-has-this-name/one.yaml\n", "lab: found '~nobody-has-this-name/one.yaml': "),
    ],
)
def test_a_wrong_file_is_told(home: Path, text: str, said: str) -> None:
    (home / "defaults.yaml").write_text(text)
    with pytest.raises(HarnessError) as refused:
        defaults.apply()
    assert said in refused.value.message


def test_who_may_not_look_for_the_file_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user of a container whose HOME is root's. Root may look everywhere, so that it is a
    name here that no file can have."""
    monkeypatch.setenv("XDG_CONFIG_HOME", f"/{'x' * 300}")
    assert "lab virtual has no host none" in listed()
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGINS, "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_what_goes_on_later_keeps_its_lab(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hil cross` and `hil bisect` know by the arguments whether something has run."""
    assert with_lab(["suites/a"]) == ["suites/a"]
    monkeypatch.chdir(home)
    monkeypatch.setenv("HIL_LAB", "one.yaml")
    assert with_lab(["suites/a"]) == ["suites/a", f"--lab={home / 'one.yaml'}"]
    for named in (["--lab", "two.yaml"], ["--lab=two.yaml"]):
        assert with_lab(named) == named


def listed(*options: str, **more: str) -> str:
    """Return the hosts that `hil lab down` knows."""
    ended = subprocess.run(
        [sys.executable, "-m", "harness.cli", "lab", "down", "--host=none", *options],
        cwd=ROOT,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.stderr


def test_hil_has_the_defaults(home: Path, tmp_path: Path) -> None:
    (home / "defaults.yaml").write_text(f"lab: one.yaml\ncache: {tmp_path / 'cache'}\n")
    assert "lab one has no host none" in listed()
    assert "lab two has no host none" in listed(HIL_LAB=str(home / "two.yaml"))
    assert "lab virtual has no host none" in listed("--lab=lab-inventory/virtual.yaml")


@pytest.mark.parametrize("workers", [(), ("-n1",)])
def test_a_run_has_the_defaults(
    home: Path, tmp_path: Path, workers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "defaults.yaml").write_text(f"lab: one.yaml\ncache: {tmp_path / 'cache'}\n")
    monkeypatch.delenv("HIL_CACHE")
    folder = write_suite(tmp_path, SUITE)
    ended = run_suite(folder, *workers)
    assert f"pytest suites --lf --lab={home / 'one.yaml'}" in ended.stdout, ended.stderr
    (run,) = (folder / "out").iterdir()
    (test,) = json.loads((run / "result.json").read_text())["tests"]
    assert "assert not 'one-1'" in test["message"]
    assert f"--lab={home / 'one.yaml'}" in test["again"]
    (home / "defaults.yaml").write_text("lab: nosuch.yaml\n")
    ended = run_suite(folder, *workers)
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: $HIL_LAB: inventory /" in ended.stderr
