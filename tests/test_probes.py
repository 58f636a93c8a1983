"""A probe of a host's kernel is removed however the session ends, and one that is left does not
stand in the way of the next.

This kernel's tracefs is real, but a uprobe on a program stands for the kprobe: the two have the
same grammar (Documentation/trace/uprobetracer.rst), and not every kernel that this runs on has
kprobes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import LabError
from harness.host import probes
from harness.host import session as sessions
from harness.host.connection import CommandFailedError
from harness.host.probes import probed
from harness.host.session import Session
from harness.waiting import wait_for
from tests.local_host import LocalHost

NAME = f"test{os.getpid()}"


@pytest.fixture
def tracing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Mount this kernel's tracefs, and return a folder in which its uprobes are the kprobes."""
    mounted, folder = tmp_path / "tracefs", tmp_path / "tracing"
    mounted.mkdir()
    folder.mkdir()
    mount = ["mount", "-t", "tracefs", "none", str(mounted)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("tracefs cannot be mounted here")
    try:
        if not (mounted / "uprobe_events").exists():
            pytest.skip("this kernel has no uprobes")
        (folder / "kprobe_events").symlink_to(mounted / "uprobe_events")
        for name in ("events", "trace"):
            (folder / name).symlink_to(mounted / name)
        monkeypatch.setattr(probes, "TRACING", str(folder))
        monkeypatch.setattr(sessions, "ROOT", str(tmp_path / "hil"))
        yield folder
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def entry(program: Path) -> str:
    """Return the place of a program's first instruction, as a uprobe names it."""
    content = program.read_bytes()
    (start,) = struct.unpack_from("<Q", content, 24)
    table, (size, count) = (
        *struct.unpack_from("<Q", content, 32),
        struct.unpack_from("<HH", content, 54),
    )
    for index in range(count):
        kind, _, offset, address, _, length = struct.unpack_from(
            "<IIQQQQ", content, table + size * index
        )
        if kind == 1 and address <= start < address + length:
            return f"{program.resolve()}:{start - address + offset:#x}"
    raise AssertionError(f"{program} has no entry")


WHAT = f"{entry(Path('/bin/true'))} type=%sp:u32"


def there(tracing: Path) -> bool:
    return f"hil/{NAME} " in (tracing / "kprobe_events").read_text()


@pytest.fixture
def session(tracing: Path) -> Iterator[Session]:
    running = Session.start(LocalHost())
    yield running
    running.end()


def kill_agent(session: Session) -> None:
    session.abandon()
    pid = int(Path(session.folder, "agent.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_for("the agent to end", lambda: not Path(f"/proc/{pid}").exists(), deadline=5)


def test_a_probe_counts_and_is_removed(tracing: Path, session: Session) -> None:
    with probed(session, NAME, WHAT) as hits:
        assert there(tracing)
        for _ in range(2):
            subprocess.run(["/bin/true"], check=True)
        assert [list(hit) for hit in hits()] == [["type"], ["type"]]
    assert not there(tracing)


def test_one_that_was_left_is_replaced(tracing: Path, session: Session) -> None:
    """Without that the kernel answers EEXIST."""
    definition = f"p:hil/{NAME} {WHAT}\n"
    file = os.open(tracing / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    os.write(file, definition.encode())
    os.close(file)
    (tracing / "events" / "hil" / NAME / "enable").write_text("1")
    with probed(session, NAME, WHAT) as hits:
        assert hits() == []
    assert not there(tracing)


def test_one_that_the_kernel_refuses_leaves_nothing(tracing: Path, session: Session) -> None:
    with pytest.raises(CommandFailedError), probed(session, NAME, "/no/program:0x0"):
        pass
    assert not there(tracing)


def test_a_killed_harness_leaves_none(tracing: Path) -> None:
    session = Session.start(LocalHost(), lease=2.0)
    with contextlib.suppress(LabError), probed(session, NAME, WHAT):
        assert there(tracing)
        session.abandon()
        wait_for("the lease to run out", lambda: not Path(session.folder).exists(), deadline=10)
    assert not there(tracing)


def test_a_killed_agent_leaves_one_to_the_next(tracing: Path) -> None:
    session = Session.start(LocalHost())
    with contextlib.suppress(LabError), probed(session, NAME, WHAT):
        kill_agent(session)
    assert there(tracing)
    Session.start(LocalHost()).end()
    assert not there(tracing)
