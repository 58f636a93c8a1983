"""Sessions over a real sshd, which has a /run and processes of its own: a link that goes silent,
another run, and an agent that is killed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.host.connection import Connection
from harness.host.session import NotUndoneError, ReservedError, Session
from harness.waiting import wait_for
from tests.sshd import Sshd, Wire, sshd

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a /run of its own")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with sshd(tmp_path / "ssh") as running:
        yield running


@pytest.fixture
def wire(server: Sshd) -> Iterator[Wire]:
    wire = Wire(server.port)
    yield wire
    wire.close()


def test_a_lease_outlasts_a_link_that_goes_silent(server: Sshd, wire: Wire, tmp_path: Path) -> None:
    undone = tmp_path / "undone"
    with Connection.to(server.through(wire.port)) as link:
        session = Session.start(link)
        session.on_end("a", f"touch {undone}")
        session.spawn("p", ["sleep", "600"], log=f"{session.folder}/log")
        wire.silence()
        silent = time.monotonic()
        wait_for("a renewal", lambda: session._renewed > silent + 1, deadline=session.lease)
        assert session.processes() == {"p": None}
        session.end()
    assert undone.exists()


def test_what_a_killed_agent_has_left_is_undone_by_the_next(server: Sshd, tmp_path: Path) -> None:
    undone = tmp_path / "undone"
    with Connection.to(server.target) as link, Connection.to(server.target) as other:
        session = Session.start(link)
        session.on_end("a", f"touch {undone}")
        escape = f"setsid sleep 601 & echo $! >{tmp_path}/pid"
        session.spawn("p", ["sh", "-c", escape], log=f"{session.folder}/log")
        assert session.wait("p", 10) == 0
        with pytest.raises(ReservedError, match=f"process {os.getpid()}, since"):
            Session.start(other)
        link.run(f"kill -9 $(cat {session.folder}/agent.pid)")
        with pytest.raises(NotUndoneError, match="was killed before it gave the host back"):
            session.end()
        assert not undone.exists()
        following = Session.start(other)
        assert "because its agent was killed: all that it did is undone" in following.inherited[0]
        assert undone.exists()
        pid = (tmp_path / "pid").read_text().strip()
        assert other.run(["test", "-e", f"/proc/{pid}/exe"], check=False).status == 1
        following.end()
        assert other.run("ls /run/hil").text.split() == ["lock", "undos"]
