"""Whole runs work as people start them: on a host known by its address only, and with --keep."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.artifacts import stack
from harness.artifacts.kernel import recipe
from harness.artifacts.store import Store
from harness.host.host import Host, HostDescription
from harness.progress import Progress
from harness.waiting import wait_for
from tests.lab.plain import write_inventory
from tests.suite_run import run_suite, write_suite

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]


@pytest.fixture
def inventory(host_description: HostDescription, tmp_path: Path) -> Path:
    return write_inventory(host_description, tmp_path)


def pytest_run(inventory: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--lab", str(inventory), "--out", str(out), *arguments),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_suite_runs_on_a_plain_ssh_host(inventory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chosen = "suites/veventq/test_single_fault.py::test_record_is_exact"
    ended = pytest_run(inventory, out, chosen, "-k", "edu or testdev")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (result,) = out.glob("*/result.json")
    run = json.loads(result.read_text())
    assert run["lab"] == "plain"
    assert "snapshot" not in run["environment"]["plain capabilities"]
    assert [test["outcome"] for test in run["tests"]] == ["passed"] * 3
    assert list(result.parent.glob("allure-results/*-result.json"))
    assert (result.parent / "summary.md").read_text().startswith("**PASSED**")


def test_patched_software_is_copied_to_the_host(inventory: Path, tmp_path: Path) -> None:
    """A QEMU and a kernel from the developer's machine are copied and used. The QEMU here is a
    script that runs the host's own."""
    qemu = tmp_path / "qemu"
    qemu.write_text('#!/bin/sh\nexec qemu-system-aarch64 "$@"\n')
    source = stack.in_use(Store().root, Progress(enabled=False)).source()
    kernel = Store().path(recipe(source, Progress(enabled=False))) / "Image"
    out = tmp_path / "out"
    chosen = "suites/veventq/test_allocation.py::test_second_device_shares_the_queue"
    options = ("--qemu", str(qemu), "--guest-kernel", str(kernel))
    ended = pytest_run(inventory, out, chosen, *options)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("LOSS-05", "QEMU says:       lost 2147483648 event(s)"),
        pytest.param("LOSS-07", "QEMU says:       overflowed", marks=pytest.mark.long),
        pytest.param("ACC-07", "it raises: 0", marks=pytest.mark.long),
        ("CQV-02", "QEMU accepts it"),
        pytest.param(
            "HOT-03", "  unplugged, and deleted by QEMU: 1, should be 0", marks=pytest.mark.long
        ),
    ],
)
def test_a_defect_is_reproduced(inventory: Path, name: str, says: str) -> None:
    """Each reproducer shows its defect on the lab's QEMU, which was checked by hand to have it."""
    ended = subprocess.run(
        [sys.executable, "-m", "harness.cli", "reproduce", name, "--lab", str(inventory)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert says in ended.stdout.splitlines()
    assert ended.stdout.endswith("verdict: the defect is there\n")


FAILING = """\
def test_that_fails(guest):
    guest.run("echo kept >/tmp/mark")
    assert guest.run("true").status == 1
"""


def test_keep_leaves_the_guest_and_says_how_to_attach_and_end(
    inventory: Path, tmp_path: Path, host_description: HostDescription
) -> None:
    folder = write_suite(tmp_path, FAILING)
    ended = run_suite(folder, f"--lab={inventory}", f"--out={folder / 'out'}", "--keep")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "kept running on host" in ended.stdout
    commands = re.findall(r"^ +(ssh .*)$", ended.stdout, re.MULTILINE)
    shell, monitor, end = map(shlex.split, commands)
    assert "console.sock" in shell[-1]
    assert "monitor.sock" in monitor[-1]
    said = subprocess.run(
        [*monitor[:-1], monitor[-1].replace("-,rawer,escape=0x1d", "-")],
        input="info status\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    ).stdout
    assert "VM status: running" in said
    subprocess.run(end, check=True, timeout=30)

    def free() -> bool:
        listed = subprocess.run(
            host_description.target.command_line("ls /run/hil; pgrep -c qemu-system"),
            capture_output=True,
            text=True,
            check=False,
        )
        return listed.stdout.split() == ["lock", "probed", "undos", "0"]

    wait_for("the kept guest to end", free, deadline=20, interval=0.5)
    (log,) = (folder / "out").glob("*/logs/*-test_that_fails-*/guest0-console.txt")
    assert "HIL" in log.read_text()
    with Host.open(host_description) as host:
        assert host.devices["0000:0b:00.0"].driver == "nvme"
