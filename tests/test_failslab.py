"""Memory is missing for the events of SMMUs, for as many as a test says, and for nothing else.

Folders of files stand for debugfs and procfs: few kernels that this runs on can make allocations
fail.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import LabError
from harness.host import failslab
from harness.host import session as sessions
from harness.host.connection import CommandFailedError
from harness.host.failslab import no_memory_for_events
from harness.host.session import Session
from tests.local_host import LocalHost

#: Processes by their ids: the names of threads that serve interrupts.
THREADS = {
    41: "irq/34-arm-smmu-v3-evtq",
    42: "irq/35-arm-smmu-v3-gerror",
    43: "irq/101-arm-smmu-v3-combined-irq",
    44: "irq/340-nvme0q1",
}
OF_EVENTS = {41, 43}
#: Settings that somebody has made.
AS_IT_WAS = {
    "probability": "0",
    "times": "1",
    "interval": "7",
    "space": "4096",
    "verbose": "2",
    "task-filter": "N",
    "ignore-gfp-wait": "N",
}


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder with `failslab` and `proc`."""
    proc = tmp_path / "proc"
    (tmp_path / "failslab").mkdir()
    for name, value in AS_IT_WAS.items():
        (tmp_path / "failslab" / name).write_text(f"{value}\n")
    for number, name in THREADS.items():
        (proc / str(number)).mkdir(parents=True)
        (proc / str(number) / "comm").write_text(f"{name}\n")
        (proc / str(number) / "make-it-fail").write_text("0\n")
    monkeypatch.setattr(failslab, "FAILSLAB", str(tmp_path / "failslab"))
    monkeypatch.setattr(failslab, "PROC", str(proc))
    monkeypatch.setattr(sessions, "ROOT", str(tmp_path / "hil"))
    return tmp_path


@pytest.fixture
def session(kernel: Path) -> Iterator[Session]:
    running = Session.start(LocalHost())
    yield running
    running.end()


def setting(kernel: Path, name: str) -> str:
    return (kernel / "failslab" / name).read_text().strip()


def failing(kernel: Path) -> set[int]:
    """Return the threads whose allocations may fail."""
    files = {number: kernel / "proc" / str(number) / "make-it-fail" for number in THREADS}
    return {number for number, file in files.items() if file.read_text().strip() == "1"}


def test_the_threads_of_event_queues_fail_so_often(kernel: Path, session: Session) -> None:
    with no_memory_for_events(session, 3):
        assert failing(kernel) == OF_EVENTS
        names = ("probability", "times", "task-filter", "ignore-gfp-wait")
        assert [setting(kernel, name) for name in names] == ["100", "3", "Y", "Y"]
        (kernel / "failslab" / "times").write_text("0\n")  # as the kernel counts
    assert failing(kernel) == set()
    assert {name: setting(kernel, name) for name in AS_IT_WAS} == AS_IT_WAS


def test_fewer_failures_than_were_asked_for_are_the_labs(
    kernel: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failslab, "SECONDS", 0.2)
    with (
        pytest.raises(LabError, match="for 3 allocations to fail; last seen: "),
        no_memory_for_events(session, 3),
    ):
        pass
    assert failing(kernel) == set()
    assert setting(kernel, "probability") == "0"


def test_a_kernel_without_it_is_told(kernel: Path, session: Session) -> None:
    shutil.rmtree(kernel / "failslab")
    with pytest.raises(CommandFailedError), no_memory_for_events(session, 3):
        pass
    assert failing(kernel) == set()
