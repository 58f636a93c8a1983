"""What was copied to a host for a test of it goes when something else is tested there. The host is
this machine, with a real agent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from harness.host import session as sessions
from harness.host.host import Host, HostDescription, HostFiles, Upload
from harness.host.session import Session
from tests.local_host import LocalHost

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the kernel's log")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Yield a host with a session, which has its own QEMU in the folder of the test."""
    monkeypatch.setattr(sessions, "ROOT", str(tmp_path / "hil"))
    monkeypatch.setattr("harness.host.host.Connection", lambda _: LocalHost())
    monkeypatch.setattr(Host, "_probe", lambda _: None)
    own = tmp_path / "own"
    own.write_text("the host's own")
    files = HostFiles(str(own), "/firmware", "/kernel", "/initrd")
    opened = Host(HostDescription("one", cast(Any, None), files))
    opened.session = Session.start(opened.connection)
    yield opened
    opened.session.end()
    assert own.read_text() == "the host's own"


def test_the_next_build_takes_the_place_of_the_last_one(host: Host, tmp_path: Path) -> None:
    """`--loop` may copy builds all day, to a file system in memory."""
    qemu, kernel = tmp_path / "qemu", tmp_path / "Image"
    uploads = Upload("qemu", qemu), Upload("guest_kernel", kernel)
    kernel.write_text("kernel 1")
    taken = []
    for build in ("1", "2", "2", "3"):
        qemu.write_text(build)
        host.take(uploads)
        assert Path(host.files.qemu).read_text() == build
        taken.append(Path(host.files.qemu))
    assert [path for path in set(taken) if path.exists()] == [taken[-1]]
    host.take(uploads[:1])
    assert host.files.guest_kernel == "/kernel"
    assert not list(Path(host.session.folder).glob("guest_kernel-*"))
    host.take(())
    assert host.files == host.description.files
    assert not taken[-1].exists()
