"""The connection to a host, against a real sshd: links that are cut or go silent, commands, files,
and requests of many threads."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.errors import LabError
from harness.host import channels, connection, session
from harness.host.connection import (
    CommandFailedError,
    Connection,
    LinkLostError,
    SessionsTakenError,
)
from harness.host.session import Session
from harness.waiting import wait_for
from tests.sshd import Sshd, Wire, sshd, wire

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def line(server: Sshd) -> Iterator[Wire]:
    with wire(server.port) as relay:
        yield relay


@pytest.fixture
def link(server: Sshd, line: Wire) -> Iterator[Connection]:
    """Return a connection that goes through the wire."""
    with Connection.to(server.through(line.port)) as opened:
        yield opened


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have links that are lost after 2.5 s of silence, instead of 15 s."""
    monkeypatch.setattr(channels, "KEEPALIVE_SECONDS", 0.5)
    monkeypatch.setattr(channels, "SILENT_SECONDS", 2.5)


@contextlib.contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Serve a Unix socket whose connections get this answer to whatever they send, and end."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(1 << 16)
                        client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


# -- a link that is silent or cut --------------------------------------------------------------


def test_a_silent_link_is_lost_after_15_seconds() -> None:
    """It must be found, and replaced, well within a lease."""
    assert channels.KEEPALIVE_SECONDS * 3 <= channels.SILENT_SECONDS <= session.LEASE_SECONDS / 2
    assert connection.RETRY_SECONDS < session.LEASE_SECONDS / 4


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("doing", ["command", "stdin", "write_file", "ask", "unix_socket"])
def test_a_silent_link_is_replaced(
    link: Connection, line: Wire, tmp_path: Path, doing: str
) -> None:
    """A firewall that forgets a connection drops its packets, and tells nobody. Whatever waits for
    the host meanwhile is told, and the next operation connects again."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        silencing = threading.Timer(0.5, line.silence)
        silencing.start()
        started = time.monotonic()
        if doing == "unix_socket":
            with link.unix_socket(str(path)) as sock:
                sock.settimeout(10)
                assert sock.recv(1) == b""
        else:
            file = str(tmp_path / "file")
            operation: dict[str, Callable[[], object]] = {
                "command": lambda: link.run("sleep 30"),
                "stdin": lambda: link.run("sleep 1; cat; sleep 30", stdin=bytes(30_000_000)),
                "write_file": lambda: link.write_file(file, bytes(300_000_000)),
                "ask": lambda: link.ask(str(path), {"do": "wait"}, timeout=30),
            }
            with pytest.raises(LinkLostError, match="has not answered for"):
                operation[doing]()
        assert time.monotonic() - started < 6
        silencing.join()
        assert link.run("echo back").text == "back\n"
        assert line.connections == 2


def test_a_command_with_a_short_time_limit_is_not_told_to_be_slow_if_the_link_is_silent(
    link: Connection, line: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "KEEPALIVE_SECONDS", 0.5)
    threading.Timer(0.5, line.silence).start()
    with pytest.raises(LinkLostError, match="has not answered for"):
        link.run("sleep 30", timeout=1)
    assert link.run("echo back").text == "back\n"


@pytest.mark.usefixtures("impatient")
def test_a_host_that_answers_is_not_silent_however_long_a_command_says_nothing(
    link: Connection, line: Wire
) -> None:
    assert link.run("sleep 5; echo done").text == "done\n"
    assert line.connections == 1


@pytest.mark.usefixtures("impatient")
def test_what_is_only_written_to_does_not_make_a_link_silent(
    link: Connection, line: Wire, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        with link.unix_socket(str(tmp_path / "sock")) as sock:
            for _ in range(50):
                sock.sendall(b"x")
                time.sleep(0.1)
            assert link.run("echo here").text == "here\n"
    assert line.connections == 1


@pytest.mark.usefixtures("impatient")
def test_a_program_that_was_stopped_does_not_take_the_host_for_silent(
    server: Sshd, line: Wire
) -> None:
    """As by Ctrl-Z: it finds no answers, but it has not asked."""
    code = (
        "import sys; from harness.host import channels; "
        "channels.KEEPALIVE_SECONDS, channels.SILENT_SECONDS = 0.5, 1.5; "
        "from pathlib import Path; from harness.host.target import Target; "
        "from harness.host.connection import Connection; a = sys.argv; "
        "link = Connection(Target(a[1], int(a[2]), a[3], Path(a[4]), Path(a[5]))); "
        "link.run('true'); print('ready', flush=True); "
        "print(link.run('sleep 5; echo done').text, end='')"
    )
    target = server.through(line.port)
    fields = target.address, target.port, target.user, target.key, target.known_hosts
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, fields)], stdout=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdout
        try:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(1)  # by now it waits for the command, and no answer is on its way
            child.send_signal(signal.SIGSTOP)
            time.sleep(2.5)
            child.send_signal(signal.SIGCONT)
            assert child.stdout.read() == b"done\n"
        finally:
            child.kill()


@pytest.mark.usefixtures("impatient")
def test_a_program_without_a_processor_does_not_take_the_host_for_silent(
    link: Connection, line: Wire
) -> None:
    """Its threads find no answer when they go on, but they have not listened for one."""
    transport = link._transport()
    line.delay = 0.3
    wait_for("the host to be asked to answer", lambda: transport.silence, deadline=5, interval=0.01)
    ctypes.PyDLL(None).usleep(3_000_000)  # with the interpreter's lock
    assert link.run("echo here").text == "here\n"
    assert line.connections == 1


@pytest.mark.usefixtures("impatient")
def test_a_session_survives_a_silence_shorter_than_its_lease(
    link: Connection, line: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ROOT", str(tmp_path / "hil"))
    monkeypatch.setattr(connection, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(channels, "SILENT_SECONDS", 1.5)
    running = Session.start(link, lease=5.0)
    try:
        running.spawn("p", ["sleep", "600"], log=f"{running.folder}/log")
        line.silent = True
        line.silence()
        time.sleep(2.5)
        line.speak()
        time.sleep(5)
        assert running.processes() == {"p": None}
        assert line.connections > 1
    finally:
        running.end()


def test_a_host_that_is_silent_for_new_connections_is_not_reachable(
    server: Sshd, line: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.silent = True
    monkeypatch.setattr("harness.host.link.CONNECT_SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(LabError, match="not reachable over SSH"):
        with Connection.to(server.through(line.port)):
            pass
    assert time.monotonic() - started < 10


def test_a_try_to_come_back_is_not_repeated_for_as_long_as_it_took(
    link: Connection, line: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.host.link.CONNECT_SECONDS", 2.0)
    monkeypatch.setattr(link, "_reconnect_seconds", 0.0)
    transport = link._transport()
    line.silent = True
    line.cut()
    wait_for("the link to be lost", lambda: not transport.is_active(), deadline=5)
    started = time.monotonic()
    for _ in range(5):
        with pytest.raises(LabError, match="not reachable over SSH"):
            link.run("true")
    assert 2 <= time.monotonic() - started < 4
    assert line.connections == 2
    line.speak()
    wait_for("the host to be tried again", lambda: works(link), deadline=5)


def works(link: Connection) -> bool:
    try:
        return link.run("echo back").text == "back\n"
    except LabError:
        return False


def test_a_cut_link_is_an_error_once_and_then_comes_back(link: Connection, line: Wire) -> None:
    threading.Timer(0.3, line.cut).start()
    with pytest.raises(LinkLostError, match="lost while running `sleep 30`"):
        link.run("sleep 30")
    assert link.run("echo back").text == "back\n"


# -- files -------------------------------------------------------------------------------------


def test_files_are_replaced_whole(link: Connection, tmp_path: Path) -> None:
    file = tmp_path / "it's a file"
    content = bytes(range(256)) * 5000
    link.write_file(str(file), b"one", mode=0o600)
    link.write_file(str(file), content, mode=0o755)
    assert file.read_bytes() == content
    assert file.stat().st_mode & 0o777 == 0o755
    assert link.read_file(str(file), offset=len(content) - 3) == content[-3:]
    assert list(tmp_path.iterdir()) == [file]
    link.write_file(str(file), b"")
    assert file.read_bytes() == b""
    with pytest.raises(CommandFailedError, match="status 1"):
        link.write_file(str(tmp_path / "nowhere" / "file"), b"x")


def test_a_file_whose_copy_is_cut_off_stays_as_it_was(
    server: Sshd, line: Wire, tmp_path: Path
) -> None:
    """The link is cut at many places of the copy, its first and its last bytes among them."""
    file = tmp_path / "file"
    new = b"new" * 50_000
    places = [
        *range(3000, 7000, 400), 50_000, 100_000, *range(len(new) + 2000, len(new) + 8000, 400)
    ]  # fmt: skip
    outcomes = set()
    for place in places:
        file.write_bytes(b"old")
        line.cut_after = place
        # The wire is also cut if the file is whole.
        with contextlib.suppress(LabError), Connection.to(server.through(line.port)) as link:
            link.write_file(str(file), new)
            link.run("cat", stdin=bytes(100_000))
        outcomes.add(file.read_bytes())
        assert file.read_bytes() in (b"old", new), f"cut after {place} bytes"
    assert outcomes == {b"old", new}
    line.cut_after = None
    with Connection.to(server.through(line.port)) as link:
        link.write_file(str(file), b"whole")
    assert file.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [file]


def test_a_larger_file_may_take_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a slow link. Here what receives it on the host is slow."""
    monkeypatch.setattr(connection, "COPY_SECONDS", 1.0)
    programs, file = tmp_path / "bin", tmp_path / "file"
    programs.mkdir()
    (programs / "cat").write_text("#!/bin/sh\nsleep 3\nexec /bin/cat\n")
    (programs / "cat").chmod(0o755)
    path = f"SetEnv PATH={programs}:/usr/bin:/bin HOME={tmp_path}"
    large = bytes(5 * connection.SLOWEST_COPY)
    with sshd(tmp_path / "ssh", path) as slow, Connection.to(slow.target) as link:
        link.write_file(str(file), large)
        with pytest.raises(CommandFailedError, match="did not end within 1 s"):
            link.write_file(str(file), b"small")
    assert file.read_bytes() == large


def test_what_a_killed_copy_has_left_is_removed_by_the_next(
    link: Connection, tmp_path: Path
) -> None:
    left = tmp_path / "file.hil-aB3xY9"
    left.write_bytes(b"half")
    others = tmp_path / "file.hil-notes"
    others.write_bytes(b"a person's")
    link.write_file(str(tmp_path / "file"), b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "file.hil-notes"]


# -- commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("exit 124", 124),
        ("exit 137", 137),
        ("timeout 0.1 sleep 9", 124),
        ("kill -KILL $$", 137),
        ("kill -SEGV $$", 139),
        ("exit 5", 5),
    ],
)
def test_a_commands_own_status_is_no_time_out(link: Connection, command: str, status: int) -> None:
    assert link.run(command, check=False).status == status
    with pytest.raises(CommandFailedError, match=f"ended with status {status}"):
        link.run(command)


@pytest.mark.parametrize("command", ["sleep 20", "trap '' TERM; sleep 20; sleep 20"])
def test_a_command_that_does_not_end_is_told_as_such(link: Connection, command: str) -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailedError, match="did not end within 1 s"):
        link.run(command, timeout=1)
    assert time.monotonic() - started < 7


# -- requests ----------------------------------------------------------------------------------


def test_an_answer_that_is_cut_off_is_a_lost_link(link: Connection, tmp_path: Path) -> None:
    with answering(tmp_path / "sock", b'{"processes": {'):
        with pytest.raises(LinkLostError, match="closed before it answered renew"):
            link.ask(str(tmp_path / "sock"), {"do": "renew"})


def test_an_answer_that_is_not_json_is_told(link: Connection, tmp_path: Path) -> None:
    with answering(tmp_path / "sock", b"hello\n"):
        with pytest.raises(LabError, match="renew with what is not JSON: b'hello"):
            link.ask(str(tmp_path / "sock"), {"do": "renew"})


def test_no_answer_in_time_is_told_and_the_link_stays(
    link: Connection, line: Wire, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "sock"))
        deaf.listen()
        with pytest.raises(LinkLostError, match="did not answer renew within 1 s"):
            link.ask(str(tmp_path / "sock"), {"do": "renew"}, timeout=1)
    assert link.run("echo here").text == "here\n"
    assert line.connections == 1


def test_a_long_answer_comes_whole(link: Connection, tmp_path: Path) -> None:
    answer = {"text": "x" * 3_000_000}
    with answering(tmp_path / "sock", json.dumps(answer).encode() + b"\n"):
        assert link.ask(str(tmp_path / "sock"), {"do": "renew"}) == answer


def test_no_listener_is_told(link: Connection) -> None:
    with pytest.raises(LabError, match="no connection to /run/nobody") as caught:
        link.unix_socket("/run/nobody")
    assert caught.value.fix


# -- many threads ------------------------------------------------------------------------------


@pytest.mark.parametrize("sessions", [1, 3, 10])
def test_commands_of_many_threads_wait_for_a_session(tmp_path: Path, sessions: int) -> None:
    """sshd allows MaxSessions commands at once on a connection."""
    with sshd(tmp_path / "sshd", f"MaxSessions {sessions}") as server:
        with Connection.to(server.target) as link, ThreadPoolExecutor(16) as threads:
            with answering(tmp_path / "sock", b"{}\n"):
                asked = [
                    threads.submit(link.ask, str(tmp_path / "sock"), {"do": "renew"})
                    for _ in range(8)
                ]
                commands = [threads.submit(link.run, f"sleep 0.1; echo {n}") for n in range(16)]
                assert [one.result().text for one in commands] == [f"{n}\n" for n in range(16)]
                assert all(one.result() == {} for one in asked)


def test_sessions_that_are_never_free_are_told(tmp_path: Path) -> None:
    with sshd(tmp_path, "MaxSessions 1") as server, Connection.to(server.target) as link:
        long = threading.Thread(target=link.run, args=("sleep 4",))
        long.start()
        time.sleep(1)
        with pytest.raises(SessionsTakenError, match="MaxSessions") as caught:
            link.run("true", timeout=1)
        assert "MaxSessions" in str(caught.value.fix)
        long.join()
        assert link.run("echo here").text == "here\n"
