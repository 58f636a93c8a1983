"""An installed wheel has all that somebody's own test needs, in a folder that is no checkout."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from harness.report import behaviours
from tests.suite_run import ROOT
from tests.test_docs import PYTHON

PAGE = ROOT / "docs" / "own-tests.md"

#: A host at whose address nothing answers.
UNREACHABLE = """
lab: mine
hosts:
  - {name: silent, address: 127.0.0.1, port: 1, key: key, known_hosts: hosts, qemu: /q,
     firmware: /f, guest_kernel: /g, guest_initrd: /i}
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` of a virtual environment with the wheel, and with what it depends on from
    the environment of this process."""
    folder = tmp_path_factory.mktemp("wheel")
    # A build leaves a folder that the next one would take files from.
    unbuilt = shutil.ignore_patterns(".*", "build", "out", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=unbuilt, symlinks=True)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={folder}"]
    subprocess.run([*pip, *build, folder / "source"], check=True)
    shutil.rmtree(folder / "source")
    (wheel,) = folder.glob("*.whl")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    ask = [str(venv / "bin/python"), "-c", "import site; print(*site.getsitepackages())"]
    packages = Path(subprocess.check_output(ask, text=True).strip())
    for one in (one for place in site.getsitepackages() for one in Path(place).iterdir()):
        # All but this project: `__editable__` is how it is installed here.
        if not one.name.startswith(("grace_smmu_hil", "__")):
            (packages / one.name).symlink_to(one)
    target = [f"--python={venv}/bin/python", "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *target], check=True)
    assert not (packages / "fixtures").exists()
    return venv / "bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the page's test, in a folder of other things."""
    _, test = PYTHON.findall(PAGE.read_text())[0]
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "test_mine.py").write_text(test)
    return folder


class Called:
    """Calls of the programs of a virtual environment in a folder."""

    def __init__(self, venv: Path, folder: Path) -> None:
        self.venv, self.folder = venv, folder

    def __call__(self, *command: str, status: int = 0) -> str:
        """Return what a command printed. It must end with this status."""
        environment = {
            "PATH": f"{self.venv}:{os.environ['PATH']}",
            "HOME": str(self.folder.parent),
            "HIL_CACHE": str(self.folder.parent / "cache"),
            "COLUMNS": "200",
        }
        module = ["-m", "pytest"] if command[0] == "pytest" else [self.venv / command[0]]
        ended = subprocess.run(
            [self.venv / "python", *module, *command[1:]],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ended.returncode == status, ended.stdout
        assert str(ROOT) not in ended.stdout, "that is from the checkout"
        return ended.stdout

    @property
    def runs(self) -> list[Path]:
        """Return the folders of the runs."""
        return sorted(self.folder.glob("out/*"))


@pytest.fixture
def call(venv: Path, folder: Path) -> Called:
    return Called(venv, folder)


def test_pytest_has_options_markers_and_fixtures(call: Called) -> None:
    told = call("pytest", "--help")
    assert {"--qemu=PATH", "--lab=FILE", "--soak-seed=SEED", "--shard=I/N"} <= set(told.split())
    default = told.partition("(default: $HIL_LAB, or")[2].partition("virtual.yaml")[0]
    assert "site-packages" in default
    markers = call("pytest", "--markers")
    for name in ("covers", "guest", "kernel_report", "known_defect", "needs"):
        assert markers.count(f"@pytest.mark.{name}(") == 1
    fixtures = call("pytest", "--fixtures")
    assert "guest -- " in fixtures
    assert "reader -- " in fixtures
    assert call.runs == []


@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_the_pages_test_is_collected(call: Called, mode: str) -> None:
    file = call.folder / "needed.json"
    options = [f"--import-mode={mode}", "--strict-markers", f"--requirements={file}"]
    told = call("pytest", "--collect-only", "-q", *options)
    assert "test_mine.py::test_mine" in told
    assert "soak" not in told
    (one,) = json.loads(file.read_text())
    assert one["guests"], "the default guest is not known"
    assert call.runs == []


def test_hil_knows_its_version_schema_and_behaviours(call: Called) -> None:
    assert call("hil", "--version") == "hil 0.1.0\n"
    assert call("hil", "lab", "schema") == (ROOT / "lab-inventory/schema.json").read_text()
    covers = 'import pytest\n@pytest.mark.covers("VEQ-07")\ndef test_it(guest): ...\n'
    (call.folder / "test_covers.py").write_text(covers)
    # A virtual environment, with a package's tests that would be refused.
    (call.folder / "venv").mkdir()
    (call.folder / "venv" / "pyvenv.cfg").touch()
    (call.folder / "venv" / "test_other.py").write_text(covers.replace("VEQ-07", "OTHER-1"))
    told = call("hil", "coverage")
    assert "test_covers.py::test_it" in told
    assert f"1 of {len(behaviours.catalogue())} behaviours have a test" in told
    on_host = call("hil", "coverage", "--host=vgrace")
    assert f"1 of {len(behaviours.catalogue())} behaviours can run on vgrace" in on_host


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_a_host_that_does_not_answer_is_the_labs_failure(call: Called, workers: list[str]) -> None:
    (call.folder / "lab.yaml").write_text(UNREACHABLE)
    key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(call.folder / "key")]
    subprocess.run(key, check=True)
    public = " ".join((call.folder / "key.pub").read_text().split()[:2])
    (call.folder / "hosts").write_text(f"[127.0.0.1]:1 {public}\n")
    told = call("pytest", "--lab=lab.yaml", *workers, status=11)
    (run,) = call.runs
    result = json.loads((run / "result.json").read_text())
    (test,) = result["tests"]
    assert (test["id"], test["outcome"], test["blame"]) == (
        "test_mine.py::test_mine",
        "failed",
        "lab",
    )
    assert test["again"] == "pytest test_mine.py::test_mine --lab=lab.yaml"
    assert f"results: {run}\n" in told
    assert "Connection refused" in call("hil", "history", "test_mine")


def test_tests_that_have_nothing_to_do_with_labs_are_no_run(call: Called) -> None:
    (call.folder / "test_mine.py").write_text("def test_sums():\n    assert 1 + 1 == 3\n")
    told = call("pytest", status=1)
    assert "results:" not in told
    assert not (call.folder / "out").exists()


def test_there_is_no_sample_to_cross(call: Called) -> None:
    kernels = []
    for name in ("one", "other"):
        (call.folder / name).write_bytes(bytes(56) + b"ARM\x64" + name.encode())
        kernels.append(f"--guest-kernel={name}")
    said = call("hil", "cross", *kernels, "-knothing", status=2)
    assert "1 deselected" in said
    assert "file or directory not found" not in said


def test_a_behaviour_of_somebodys_own_is_no_failure(call: Called) -> None:
    (call.folder / "test_mine.py").write_text(
        'import pytest\n@pytest.mark.covers("MINE-1")\ndef test_it(): ...\n'
    )
    call("pytest", "--strict-markers")
    (run,) = call.runs
    result = json.loads((run / "result.json").read_text())
    assert [(one["covers"], one["notes"]) for one in result["tests"]] == [(["MINE-1"], [])]
    assert result["notes"] == []
    assert "which is not in the catalogue" in call("hil", "coverage", status=2).replace("\n", " ")
