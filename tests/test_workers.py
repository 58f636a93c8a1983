"""In a run on several hosts each worker has all tests of its hosts, and all get the same seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
