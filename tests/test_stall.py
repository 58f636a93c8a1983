"""QEMU's main loop is stalled, or it is told why not. QEMU is imitated; the FIFO is real."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.faults import stall
from harness.faults.stall import stalled
from harness.guest.guest import Guest
from harness.qmp import QmpRefusedError


class Stalling:
    """A guest whose QEMU opens the FIFO, or refuses to."""

    def __init__(self, folder: Path, refuses: str = "") -> None:
        self.paths = SimpleNamespace(folder=folder)
        self.monitor = self
        self.refuses = refuses
        self.at_the_fifo = threading.Event()

    def execute(self, command: str, *, filename: str, **_: object) -> None:
        if self.refuses:
            raise QmpRefusedError(command, self.refuses)
        self.at_the_fifo.set()
        with Path(filename).open("w"):
            self.at_the_fifo.clear()

    def qemu_pid(self) -> int:
        return 1

    def host_run(self, command: str | Sequence[str]) -> str:
        if isinstance(command, str) and "syscall" in command:
            command = f"echo {stall.OPENAT if self.at_the_fifo.is_set() else 22} 0x0; date +%s.%N"
        shell = isinstance(command, str)
        return subprocess.run(command, shell=shell, check=True, capture_output=True).stdout.decode()


def test_qemu_waits_as_long_as_the_body_runs(tmp_path: Path) -> None:
    guest = Stalling(tmp_path)
    with stalled(cast(Guest, guest)) as since:
        assert guest.at_the_fifo.is_set()
        assert since > 0
    assert not guest.at_the_fifo.is_set()
    assert not list(tmp_path.iterdir())


def test_a_qemu_that_refuses_is_told(tmp_path: Path) -> None:
    guest = Stalling(tmp_path, refuses="could not open it: Permission denied")
    with (
        pytest.raises(QmpRefusedError, match="QMP pmemsave: could not open it"),
        stalled(cast(Guest, guest)),
    ):
        pass
    assert not list(tmp_path.iterdir())
