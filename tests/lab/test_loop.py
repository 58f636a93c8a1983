"""`--loop`: a QEMU that changes is tested on the host that is open, guest after guest."""

from __future__ import annotations

import sys
from pathlib import Path

import pexpect
import pytest

from tests.suite_run import ROOT

pytestmark = pytest.mark.lab

CHOSEN = "suites/veventq/test_allocation.py::test_second_device_shares_the_queue"
SECONDS = 240
GOOD = 'exec qemu-system-aarch64 "$@"'
#: It is as good until a guest is to start.
DYING = f'case "$*" in *--version*) {GOOD} ;; esac; echo "cannot start today" >&2; exit 1'


def build(qemu: Path, command: str, number: int) -> None:
    """Put another build of QEMU in a file's place: a script that runs the host's own."""
    new = qemu.with_suffix(".new")
    new.write_text(f"#!/bin/sh\n# build {number}\n{command}\n")
    new.chmod(0o755)
    new.rename(qemu)


@pytest.fixture
def running(tmp_path: Path) -> pexpect.spawn[str]:
    qemu = tmp_path / "qemu"
    build(qemu, GOOD, 0)
    arguments = ["-m", "pytest", "-p", "no:cacheprovider", CHOSEN, f"--qemu={qemu}", "--loop"]
    arguments += [f"--out={tmp_path / 'out'}"]
    return pexpect.spawn(
        sys.executable, arguments, cwd=str(ROOT), encoding="utf-8", timeout=SECONDS
    )


def test_next_qemu(running: pexpect.spawn[str], tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    with running:
        running.expect("1 passed in")
        build(qemu, DYING, 1)
        running.expect("qemu changed")
        running.expect("cannot start today")
        running.expect("1 (failed|error) in")
        build(qemu, GOOD, 2)
        running.expect("1 passed in")
        build(qemu, GOOD, 0)  # as at first, when its guest's snapshot was made
        running.expect("1 passed in")
        running.sendintr()
        running.expect(pexpect.EOF)
    assert running.exitstatus == 0
