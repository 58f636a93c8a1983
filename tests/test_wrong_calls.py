"""A wrong call of pytest or `hil` is told with what to do about it, before anything is made, built
or reserved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.checkout import ROOT
from tests.suite_run import PLUGINS, run_suite, write_suite

#: The second test runs on the first host of the inventory that may have a CMDQV. There is no host.
SUITE = """
from types import SimpleNamespace

import pytest

@pytest.fixture
def host(host_name): return SimpleNamespace(capabilities=())

@pytest.fixture
def _ran_on(): pass

def test_passes(): pass

@pytest.mark.needs("cmdqv")
def test_on_some_host(host): pass
"""


#: An inventory with a host that is no virtual one.
OTHER = """
lab: mine
hosts:
  - {name: a, address: b, key: k, known_hosts: h, qemu: /q, firmware: /f, guest_kernel: /g,
     guest_initrd: /i}
"""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a suite, and with files that are no inventories."""
    folder = write_suite(tmp_path_factory.mktemp("calls"), SUITE)
    (folder / "latin.yaml").write_bytes(b"lab: mine\nhosts:\n  - name: gr\xfcn\n")
    (folder / "control.yaml").write_text("lab: a\x01b\n")
    (folder / "deep.yaml").write_text("[" * 1200)
    (folder / "home.yaml").write_text(
        "lab: mine\nhosts:\n  - {name: a, address: b, key: ~nobody-here/k, known_hosts: h}\n"
    )
    (folder / "fields.yaml").write_text("lab: mine\nhosts:\n  - {name: a, adress: b}\n")
    (folder / "other.yaml").write_text(OTHER)
    (folder / "Image").write_bytes(bytes(56) + b"ARM\x64" + bytes(4))
    (folder / "text").write_text("no program, and no kernel\n")
    (folder / "file").write_text("")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a suite."""
    return write_suite(tmp_path, SUITE)


@dataclass(frozen=True)
class Ended:
    """How a call ended."""

    status: int
    stdout: str
    stderr: str


def called(folder: Path, calls: list[list[str]], **more: str) -> list[Ended]:
    """Make these calls in a folder, and return how each ended."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.many_calls"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HIL_CACHE": str(folder / "cache"), **more},
        input=json.dumps(calls),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Ended(*one) for one in json.loads(told.stdout)]


def unmade(folder: Path) -> bool:
    """Return whether a call made no run's folder."""
    return not list(folder.glob("out/*"))


OPTIONS: list[tuple[list[str], str]] = [
    (["--host=nosuch"], "--host: lab virtual has no host nosuch; choose one of vgrace, "),
    (["--host=nosuch", "--collect-only"], "--host: lab virtual has no host nosuch; "),
    (["--lab=nosuch.yaml"], "--lab: inventory nosuch.yaml cannot be read: No such file"),
    (["--lab=nosuch.yaml", "-n2"], "--lab: inventory nosuch.yaml cannot be read: No such file"),
    (["--lab=suites"], "--lab: inventory suites cannot be read: Is a directory; "),
    (["--lab=latin.yaml"], "--lab: latin.yaml:3: not UTF-8: byte 0xfc; save the file "),
    (["--lab=control.yaml"], "--lab: control.yaml:1: not valid YAML: character U+0001 is"),
    (["--lab=deep.yaml"], "--lab: deep.yaml:1: not valid YAML: nested more than 20 deep"),
    (["--lab=home.yaml"], "--lab: home.yaml:3: hosts[0].key: found '~nobody-here/k': "),
    (["--lab=fields.yaml"], "fields.yaml:3: hosts[0].adress: unknown field; "),
    (["--shard=3/2"], "--shard: 3/2 is no part of a run; give I/N"),
    (["--shard=abc"], "--shard: abc is no part of a run; give I/N"),
    (["--qemu=/no/such"], "--qemu: no file /no/such on this machine; name a file"),
    (["--qemu=suites"], "--qemu: suites is a folder; name a file"),
    (["--qemu=text"], "--qemu: text is no program; name the file"),
    (["--guest-kernel=/no/such"], "--guest-kernel: no file /no/such on this machine; "),
    (["--guest-kernel=text"], "--guest-kernel: text is no kernel for arm64; name the file"),
    (["--host-kernel=/no/such"], "--host-kernel: no file /no/such on this machine; name a file"),
    (["--host-kernel=text"], "--host-kernel: text is no kernel for arm64; name the file"),
    (
        ["--host-kernel=Image", "--lab=other.yaml"],
        "--host-kernel: the inventory does not allow to boot kernels on host a; add",
    ),
    (["--soak-minutes=-5"], "--soak-minutes: -5 is no duration; give a number"),
    (["--soak-minutes=0"], "--soak-minutes: 0 is no duration; give a number"),
    (["--soak-minutes=nan"], "--soak-minutes: nan is no duration; give a number"),
    (["--soak-minutes=inf"], "--soak-minutes: inf is no duration; give a number"),
    (["--out=file/below"], "--out: a run's folder cannot be made in file/below: Not a directo"),
    (["--out=/proc/x"], "--out: a run's folder cannot be made in /proc/x: No such file"),
]


@pytest.fixture(scope="module")
def wrong_options(calls: Path) -> list[Ended]:
    return called(calls, [["pytest", "suites", *PLUGINS, *options] for options, _ in OPTIONS])


@pytest.mark.parametrize("number", range(len(OPTIONS)), ids=[" ".join(one) for one, _ in OPTIONS])
def test_a_wrong_option(calls: Path, wrong_options: list[Ended], number: int) -> None:
    ended, said = wrong_options[number], OPTIONS[number][1]
    assert ended.status == pytest.ExitCode.USAGE_ERROR, ended
    (line,) = [line for line in ended.stderr.splitlines() if line]
    assert line.startswith("ERROR: ")
    assert said in line
    assert "Traceback" not in ended.stdout
    assert "collected" not in ended.stdout
    assert unmade(calls)


def test_a_cache_that_cannot_be_made(folder: Path) -> None:
    ended = run_suite(folder, HIL_CACHE="/proc/x")
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR, ended.stdout + ended.stderr
    assert ended.stderr.strip() == (
        "ERROR: the cache's folder /proc/x cannot be made: No such file or directory; "
        "set HIL_CACHE to a folder that you may write to"
    )
    assert unmade(folder)


@pytest.mark.parametrize(
    ("chosen", "options", "status", "said"),
    [
        ("suites", ["-knothing"], pytest.ExitCode.NO_TESTS_COLLECTED, ""),
        ("suites", ["-knothing", "-n2"], pytest.ExitCode.NO_TESTS_COLLECTED, ""),
        ("suites", ["-mnothing"], pytest.ExitCode.NO_TESTS_COLLECTED, ""),
        ("suites", ["--shard=2/2"], pytest.ExitCode.NO_TESTS_COLLECTED, ""),
        ("suites/nosuch", [], pytest.ExitCode.USAGE_ERROR, "not found: suites/nosuch"),
        ("suites/nosuch", ["-n2"], pytest.ExitCode.USAGE_ERROR, "not found: suites/nosuch"),
        ("suites/test_suite.py::no", ["-n2"], pytest.ExitCode.USAGE_ERROR, "test_suite.py::no"),
    ],
)
def test_nothing_is_chosen(
    folder: Path, chosen: str, options: list[str], status: pytest.ExitCode, said: str
) -> None:
    ended = run_suite(folder, *options, chosen=chosen)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert ended.stderr.count("ERROR: ") == (1 if said else 0)
    assert said in ended.stderr
    assert unmade(folder)
    assert "results:" not in ended.stdout
    assert "junit.xml" not in ended.stdout


@pytest.mark.parametrize(
    ("workers", "blamed", "status"),
    [(0, "LabError", 2), (2, "LabError", 2), (2, "ProductError", 1)],
)
def test_a_suite_that_cannot_be_collected_is_told(
    folder: Path, workers: int, blamed: str, status: int
) -> None:
    """That is no wrong call: the run is there, and is no success. Workers run the other tests, of
    which the product's failures alone count more."""
    (folder / "suites" / "test_suite.py").write_text("import no_such_module\n")
    (folder / "suites" / "test_other.py").write_text(
        f"from harness.errors import {blamed}\ndef test_it(): raise {blamed}('it')\n"
    )
    ended = run_suite(folder, f"-n{workers}")
    assert ended.returncode == status, ended.stdout + ended.stderr
    (run,) = (folder / "out").iterdir()
    summary = (run / "summary.md").read_text()
    assert "the suites cannot be collected)**" in summary.splitlines()[0]
    assert "No module named 'no_such_module'" in summary


HIL = [
    ("lab status --lab=nosuch.yaml", "hil: --lab: inventory nosuch.yaml cannot be read"),
    ("lab status --lab=latin.yaml", "hil: --lab: latin.yaml:3: not UTF-8"),
    ("lab up --lab=control.yaml", "hil: --lab: control.yaml:1: not valid YAML"),
    ("lab down --host=nosuch", "hil: --host: lab virtual has no host nosuch\n  fix: choose"),
    ("lab ssh --host=nosuch", "hil: --host: lab virtual has no host nosuch\n  fix: choose"),
    ("coverage --lab=fields.yaml", "hil: --lab: fields.yaml:3: hosts[0].adress: unknown"),
    (f"coverage --lab={ROOT}/lab-inventory/virtual.yaml", "  fix: add --host with one of v"),
    ("reproduce LOSS-05 --qemu=/no/such", "hil: --qemu: no file /no/such on this machine"),
    ("reproduce LOSS-05 --guest-kernel=text", "hil: --guest-kernel: text is no kernel"),
    ("reproduce LOSS-05 --host-kernel=text", "hil: --host-kernel: text is no kernel for arm64"),
    ("lab up --host-kernel=text", "hil: --host-kernel: text is no kernel for arm64"),
    ("reproduce LOSS-05 --host-kernel=Image --lab=other.yaml", "allow to boot kernels on host a"),
    ("lab up --host-kernel=Image --lab=other.yaml", "allow to boot kernels on host a\n  fix: add "),
    ("reproduce LOSS-05 --host=nosuch", "hil: --host: lab virtual has no host nosuch"),
    ("report nosuch", "hil: there is no run nosuch, neither as a folder nor in "),
    ("report suites", "suites has no Allure results\n  fix: name a run's folder"),
    ("compare suites suites", "result.json is no run's result: No such file"),
    ("compare nosuch suites", "hil: there is no run nosuch, neither as a folder nor in "),
    ("matrix nosuch", "hil: there is no run nosuch, neither as a folder nor in "),
    ("matrix suites", "suites is no run's folder\n  fix: name folders of runs"),
    ("runs prune --dry-run", "hil: nothing says which runs are to go\n  fix: give a limit: --keep"),
]


@pytest.fixture(scope="module")
def wrong_calls(calls: Path) -> list[Ended]:
    commands = [["hil", *arguments.split()] for arguments, _ in HIL]
    # Where nothing can be made, whatever is built or reserved fails.
    return called(calls, commands, HIL_CACHE=str(calls / "file" / "cache"))


@pytest.mark.parametrize("number", range(len(HIL)), ids=[one for one, _ in HIL])
def test_a_wrong_call_of_hil(calls: Path, wrong_calls: list[Ended], number: int) -> None:
    ended, said = wrong_calls[number], HIL[number][1]
    assert ended.status == 2, ended
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


NOT_BUILT = "--no-build: host vgrace is not built: emulator, kernel, guest, host would take about 9"


@pytest.mark.parametrize("workers", [[], ["-n2"]])
def test_a_run_does_not_build(folder: Path, workers: list[str]) -> None:
    suite = folder / "suites" / "test_suite.py"
    suite.write_text("def test_on_a_host(host): pass\n")
    ended = run_suite(folder, "--no-build", *workers, HIL_CACHE=str(folder / "cache"))
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR, ended.stdout + ended.stderr
    assert ended.stderr.startswith(f"ERROR: {NOT_BUILT}")
    assert ended.stderr.count("ERROR: ") == 1
    assert unmade(folder)
    assert list((folder / "cache").iterdir()) == []


def test_hil_does_not_build(folder: Path) -> None:
    asked = ("lab up", "reproduce LOSS-05", "doctor --host=vgrace")
    for ended in called(folder, [["hil", *one.split(), "--no-build"] for one in asked]):
        assert ended.status, ended
        assert f"hil: {NOT_BUILT}" in ended.stderr
    assert list((folder / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("small", "said"),
    [
        ("cache", "building kernel needs 4.0 GiB in "),
        ("out", "a run needs 16.0 MiB for its results in "),
    ],
)
def test_a_disk_is_too_small(folder: Path, small: str, said: str) -> None:
    suite = folder / "suites" / "test_suite.py"
    suite.write_text("def test_on_a_host(host): pass\n")
    (folder / small).mkdir()
    mount = f'mount -t tmpfs -o size=10m none {small} && exec "$@"'
    inside = ["unshare", "--mount", "--user", "--map-root-user", "sh", "-c", mount, "sh"]
    ended = run_suite(folder, inside=inside, HIL_CACHE=str(folder / "cache"))
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR, ended.stdout + ended.stderr
    assert ended.stderr.startswith(f"ERROR: {said}{folder / small}")
    assert "(tmpfs, " in ended.stderr
    assert "free some space there, for example with `hil lab prune`" in ended.stderr


def test_hil_without_a_cache(calls: Path) -> None:
    commands = [["hil", "lab", "build"], ["hil", "lab", "up"], ["hil", "reproduce", "LOSS-05"]]
    for ended in called(calls, commands, HIL_CACHE="/proc/x"):
        assert ended.status == 2
        said = "hil: the cache's folder /proc/x cannot be made: No such file or directory\n  fix: "
        assert ended.stderr.startswith(said)


@pytest.mark.parametrize("command", ["coverage", "report", "compare"])
def test_a_damaged_result(tmp_path: Path, command: str) -> None:
    run = tmp_path / "out" / "20260101-000000"
    (run / "allure-results").mkdir(parents=True)
    (run / "allure-results" / "1-result.json").write_text("{}")
    (run / "result.json").write_text("")
    # `hil coverage` looks at the runs of its own checkout, which its module names.
    started = (
        "from pathlib import Path; from harness import checkout; "
        f"checkout.OUT = Path({str(tmp_path / 'out')!r}); from harness import cli; cli.main()"
    )
    arguments = {"coverage": [], "report": [str(run)], "compare": [str(run), str(run)]}[command]
    ended = subprocess.run(
        [sys.executable, "-c", started, command, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    said = f"hil: {run / 'result.json'} is no run's result: it is empty\n  fix: name the folder"
    assert ended.stderr.startswith(said)
