"""A session tells how it ended, whatever happens to the link and the agent. The agent is real."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from harness.errors import LabError
from harness.host import session as sessions
from harness.host.agent.files import READ_BYTES
from harness.host.connection import CommandFailedError, Completed, LinkLostError
from harness.host.holder import Holder
from harness.host.session import (
    NotUndoneError,
    ReservedError,
    Session,
    SessionOverError,
    SystemRefusedError,
    check_free,
)
from harness.host.tail import Tail
from harness.waiting import wait_for
from tests.local_host import LocalHost

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the kernel's log")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of all sessions, in place of /run/hil."""
    monkeypatch.setattr(sessions, "ROOT", str(tmp_path / "hil"))
    return tmp_path / "hil"


@pytest.fixture
def link() -> LocalHost:
    return LocalHost()


@pytest.fixture
def session(link: LocalHost) -> Iterator[Session]:
    running = Session.start(link)
    yield running
    link.before = link.after = lambda _: None
    with contextlib.suppress(LabError):
        running.end()


def kill_agent(session: Session) -> None:
    pid = int(Path(session.folder, "agent.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_for("the agent to end", lambda: not Path(f"/proc/{pid}").exists(), deadline=5)


def lost_at(verb: str) -> object:
    def cut(request: Mapping[str, object]) -> None:
        if request["do"] == verb:
            raise LinkLostError("cut")

    return cut


# -- the start ---------------------------------------------------------------------------------


def test_a_start_that_is_interrupted_leaves_no_agent(
    link: LocalHost, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes when the agent is there, and before its start is known to be complete."""
    run = link.run

    def interrupted(command: str | Sequence[str], *, stdin: bytes = b"") -> Completed:
        run(command, stdin=stdin)
        raise KeyboardInterrupt

    monkeypatch.setattr(link, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Session.start(link)
    assert sorted(path.name for path in root.iterdir()) == ["lock", "undos"]
    assert (root / "lock").read_text() == ""


def test_what_the_system_refuses_is_the_labs_failure(session: Session, root: Path) -> None:
    """The host's disk is full: it has room for no file."""
    disk = root / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=1", "tmpfs", disk], check=True)
    try:
        with pytest.raises(SystemRefusedError, match=r"to spawn: OSError: .*No space left"):
            session.spawn("p", ["true"], log=f"{disk}/log")
    finally:
        subprocess.run(["umount", disk], check=True)
        disk.rmdir()


# -- files -------------------------------------------------------------------------------------


def test_a_file_is_read_in_parts(session: Session, tmp_path: Path) -> None:
    path, content = tmp_path / "trace.log", os.urandom(READ_BYTES) * 2 + b"end"
    path.write_bytes(content)
    assert session.read_file(str(path)) == content
    assert session.read_file(str(path), offset=READ_BYTES + 1) == content[READ_BYTES + 1 :]
    assert session.read_file(str(path), offset=-5) == content[-5:]
    assert session.read_file(str(path), offset=-2 * len(content)) == content
    assert session.read_file(str(path), offset=2 * len(content)) == b""
    assert session.file_size(str(path)) == len(content)
    path.write_bytes(b"")
    assert (session.read_file(str(path), offset=-5), session.file_size(str(path))) == (b"", 0)


def test_what_cannot_be_read_is_told(session: Session, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("pipe", "no regular file"), ("none", "No such file"), ("", "regular file")):
        with pytest.raises(CommandFailedError, match=f"{tmp_path / name} on .* be read: .*{why}"):
            session.read_file(str(tmp_path / name))


def test_a_log_is_read_as_it_grows(session: Session, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old\nfirst\nhal")
    tail = Tail(session, str(log), offset=4)
    assert tail.lines() == ["first"]
    with log.open("a") as file:
        file.write("f\n")
    assert tail.lines() == ["half"]
    assert tail.lines() == []


def test_the_hosts_time_is_told(session: Session) -> None:
    before = time.time()
    assert before <= session.clock() <= time.time()


# -- the end -----------------------------------------------------------------------------------


def test_a_clean_end_leaves_only_the_lock_and_the_records(session: Session, root: Path) -> None:
    session.on_end("a", "true")
    session.end()
    assert sorted(path.name for path in root.iterdir()) == ["lock", "undos"]
    assert (root / "lock").read_text() == ""
    assert {path.stat().st_mode & 0o777 for path in root.iterdir()} == {0o600}


def test_a_failed_undo_is_told_by_the_end_and_to_the_next_session(
    link: LocalHost, session: Session
) -> None:
    session.on_end("a", "echo why; exit 5")
    with pytest.raises(NotUndoneError, match=r"could not be undone on this-machine: {'a': 'why"):
        session.end()
    following = Session.start(link)
    following.end()
    (said,) = following.inherited
    assert "the harness ended it: this could not be undone: {'a': 'why" in said
    assert f"session {session.name} of {getpass.getuser()} on {socket.gethostname()}" in said


@pytest.mark.parametrize("command", ["true", "exit 5"])
def test_a_link_that_is_lost_while_the_session_ends_hides_nothing(
    link: LocalHost, session: Session, command: str
) -> None:
    session.on_end("a", command)
    link.after = lost_at("end")  # type: ignore[assignment]
    good = command == "true"
    with contextlib.nullcontext() if good else pytest.raises(NotUndoneError, match="'a'"):
        session.end()


def test_an_end_that_is_never_heard_waits_for_the_lease(link: LocalHost, root: Path) -> None:
    session = Session.start(link, lease=2.0)
    session.on_end("a", f"sleep 1; touch {root}/undone")
    link.before = lost_at("end")  # type: ignore[assignment]
    session.end()
    assert (root / "undone").exists()


def test_an_undo_that_takes_long_is_waited_for(
    session: Session, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "POLL_SECONDS", 0.2)
    for name in "ab":
        session.on_end(name, f"sleep 1; echo {name} >>{root}/undone")
    session.end()
    assert (root / "undone").read_text() == "b\na\n"


def test_an_undo_that_still_runs_is_told(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("POLL_SECONDS", 0.2), ("GIVE_BACK_SECONDS", 1.0), ("LEASE_SECONDS", 1)):
        monkeypatch.setattr(sessions, name, seconds)
    session.on_end("a", "sleep 5")
    with pytest.raises(NotUndoneError, match="to give back this-machine; last seen: undo a"):
        session.end()


def test_a_killed_agent_is_told_and_the_next_session_undoes(
    link: LocalHost, session: Session, root: Path
) -> None:
    session.on_end("a", f"touch {root}/undone")
    kill_agent(session)
    with pytest.raises(
        NotUndoneError, match="was killed before it gave the host back; not undone: a"
    ):
        session.end()
    assert not (root / "undone").exists()
    following = Session.start(link)
    assert (root / "undone").exists()
    following.end()
    (said,) = following.inherited
    assert "ended because its agent was killed: all that it did is undone" in said
    session.end()  # the record is still there
    third = Session.start(link)
    third.end()
    assert third.inherited == ()


def test_how_a_session_ended_is_told_although_the_first_answer_is_lost(
    link: LocalHost, session: Session
) -> None:
    session.on_end("a", "echo why; exit 5")
    with pytest.raises(NotUndoneError):
        session.end()
    lost: list[Mapping[str, object]] = []

    def lose_once(request: Mapping[str, object]) -> None:
        if request["do"] == "inherited" and not lost:
            lost.append(request)
            raise LinkLostError("cut")

    link.after = lose_once
    following = Session.start(link)
    following.end()
    (said,) = following.inherited
    assert lost
    assert "this could not be undone: {'a': 'why" in said


def test_a_host_that_was_booted_since_has_nothing_to_undo(session: Session, root: Path) -> None:
    session.on_end("a", "true")
    kill_agent(session)
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    session.end()


# -- the lease ---------------------------------------------------------------------------------


def test_the_leases_thread_survives_anything_and_tells_it(link: LocalHost) -> None:
    session = Session.start(link, lease=2.0)
    tripped = threading.Event()

    def trip(request: Mapping[str, object]) -> None:
        if request["do"] == "renew" and not tripped.is_set():
            tripped.set()
            raise AssertionError("no transport")

    link.before = trip
    assert tripped.wait(5)
    wait_for("the problem to be kept", lambda: session._problem, deadline=5)
    with pytest.raises(AssertionError, match="no transport"):
        session.pid("p")
    renewed = session._renewed
    wait_for("the lease to be renewed again", lambda: session._renewed > renewed, deadline=5)
    session.end()


def test_a_problem_that_no_caller_was_told_of_is_told_by_the_end(link: LocalHost) -> None:
    session = Session.start(link, lease=2.0)
    session._problem = AssertionError("no transport")
    with pytest.raises(AssertionError, match="no transport"):
        session.end()


def test_a_lease_outlasts_a_link_that_is_lost_for_a_while(link: LocalHost) -> None:
    session = Session.start(link, lease=3.0)
    losses = 0

    def lose(request: Mapping[str, object]) -> None:
        nonlocal losses
        if request["do"] == "renew" and losses < 8:  # the next try follows soon
            losses += 1
            raise LinkLostError("cut")

    link.before = lose
    wait_for("the losses", lambda: losses == 8, deadline=5)
    assert session.processes() == {}
    session.end()


def test_a_session_that_is_over_says_why(link: LocalHost) -> None:
    session = Session.start(link, lease=1.0)
    session.on_end("a", "sleep 1.5")
    session.abandon()
    wait_for("the lease to run out", lambda: _over(session), deadline=5)
    wait_for("it to be over", lambda: not Path(session.folder).exists(), deadline=5)
    with pytest.raises(SessionOverError, match=r"nothing renewed its lease of 1 s for \d+ s"):
        session.pid("p")
    session.end()


def _over(session: Session) -> bool:
    try:
        session.kernel_reports()
    except SessionOverError as over:
        return "has ended: its lease ran out" in str(over)
    return False


# -- other runs --------------------------------------------------------------------------------


def test_a_host_that_was_taken_just_now_is_not_free(link: LocalHost, root: Path) -> None:
    """An agent has the lock a moment before it has written whose it is."""
    check_free(link)
    root.mkdir()
    with (root / "lock").open("w") as lock:
        check_free(link)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ReservedError, match="host this-machine is in use"):
            check_free(link)


def test_a_busy_host_tells_who_has_it(link: LocalHost, session: Session, root: Path) -> None:
    with pytest.raises(ReservedError) as caught:
        Session.start(link)
    said = str(caught.value)
    me = f"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}, since 20"
    assert f"host this-machine is in use by {me}" in said
    assert f"`kill $(cat {root}/{session.name}/agent.pid)` on the host" in said
    assert {path.name for path in root.iterdir()} == {session.name, "lock", "undos"}


def test_a_session_is_told_to_be_whose_it_is_now(
    link: LocalHost, session: Session, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restored snapshot has a session of whoever saved it, in an earlier run it may be."""
    session.abandon()
    monkeypatch.setattr(Holder, "me", lambda: Holder("ann", "a-lab", 77, "just now"))
    adopted = Session.adopt(link, session.name, session.lease)
    with pytest.raises(ReservedError, match="in use by ann on a-lab, process 77, since just now"):
        check_free(link)
    kill_agent(adopted)
    adopted.abandon()
    after = Session.start(link)
    after.end()
    (told,) = after.inherited
    assert told.startswith(f"session {session.name} of ann on a-lab, process 77, since just now")
