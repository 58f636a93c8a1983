"""The host agent ends what it started when its lease expires, undoes what was done, and reserves
the host. It runs as a real process here."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.host.agent.kernel_log import KernelLog
from harness.host.program import script
from harness.host.session import AGENT
from harness.waiting import wait_for
from tests.interpreters import INTERPRETERS

Ask = Callable[..., dict[str, Any]]
Start = Callable[[Path, float], subprocess.CompletedProcess[str]]


def starter(python: str, agent: str) -> Start:
    """Return a call that starts an agent for a folder, with a lease in seconds."""

    def go(folder: Path, lease: float) -> subprocess.CompletedProcess[str]:
        folder.mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            [python, "-I", "-", str(folder), str(lease)],
            input=agent,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    return go


@pytest.fixture(params=INTERPRETERS)
def start(request: pytest.FixtureRequest) -> Start:
    return starter(request.param, script(AGENT).decode())


def asker(folder: Path) -> Ask:
    def ask(do: str, **more: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(folder / "agent.sock"))
            sock.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(sock.makefile().readline())
            return answer

    return ask


@pytest.fixture
def session(start: Start, tmp_path: Path) -> Iterator[tuple[Path, Ask]]:
    folder = tmp_path / "hil" / "one"
    assert start(folder, 30).returncode == 0
    ask = asker(folder)
    yield folder, ask
    with contextlib.suppress(OSError):
        ask("end")


def spawn(folder: Path, ask: Ask, script: str, **more: Any) -> int:
    answer = ask("spawn", name="p", argv=["sh", "-c", script], log=str(folder / "log"), **more)
    pid: int = answer["pid"]
    return pid


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_process_runs_logs_and_ends(session: tuple[Path, Ask]) -> None:
    folder, ask = session
    spawn(folder, ask, "echo hello; exit 3")
    assert ask("wait", name="p", seconds=10) == {"status": 3}
    assert (folder / "log").read_text() == "hello\n"
    assert ask("renew")["processes"] == {"p": 3}


def test_sockets_are_there_before_the_process(session: tuple[Path, Ask]) -> None:
    folder, ask = session
    path = str(folder / "s.sock")
    serve = "sleep 0.3; exec readlink /proc/self/fd/{s}"
    spawn(folder, ask, serve, listen={"s": path})
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    assert ask("wait", name="p", seconds=10) == {"status": 0}
    assert (folder / "log").read_text().startswith("socket:")


def test_end_kills_what_ignores_it_and_undoes_newest_first(session: tuple[Path, Ask]) -> None:
    folder, ask = session
    record = folder.parent / "record"
    ask("undo", name="a", command=f"echo a >>{record}")
    ask("undo", name="b", command=f"echo b >>{record}; echo said; exit 5")
    pid = spawn(folder, ask, "trap '' TERM; while :; do sleep 1; done")
    started = time.monotonic()
    assert ask("end") == {"undone": {"b": [5, "said\n"], "a": [0, ""]}}
    assert time.monotonic() - started < 6
    assert record.read_text() == "b\na\n"
    assert gone(pid)
    wait_for("the session's folder to go", lambda: not folder.exists(), deadline=5)


def test_undo_now_is_not_done_again(session: tuple[Path, Ask]) -> None:
    folder, ask = session
    record = folder.parent / "record"
    ask("undo", name="a", command=f"echo a >>{record}")
    assert ask("undos") == {"names": ["a"]}
    assert ask("undo now", names=["a", "unknown"]) == {"undone": {"a": [0, ""]}}
    assert ask("undos") == {"names": []}
    ask("end")
    assert record.read_text() == "a\n"


def test_a_lease_that_is_not_renewed_ends_everything(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "hil" / "short"
    record = tmp_path / "record"
    assert start(folder, 3.0).returncode == 0
    ask = asker(folder)
    ask("undo", name="a", command=f"echo undone >{record}")
    pid = spawn(folder, ask, "sleep 600")
    for _ in range(4):
        time.sleep(0.8)  # each renewal is within the lease; all together take longer than it
        assert ask("renew")["processes"] == {"p": None}
    wait_for("the lease to run out", lambda: not folder.exists(), deadline=10)
    assert gone(pid)
    assert record.read_text() == "undone\n"


def test_processes_do_not_outlive_a_killed_agent(session: tuple[Path, Ask]) -> None:
    folder, ask = session
    pid = spawn(folder, ask, "exec sleep 600")
    agent = int((folder / "agent.pid").read_text())
    subprocess.run(["kill", "-9", str(agent)], check=True)
    wait_for("the process to end with its agent", lambda: gone(pid), deadline=5)


def test_one_session_at_a_time(start: Start, session: tuple[Path, Ask]) -> None:
    folder, ask = session
    second = start(folder.parent / "two", 30)
    assert second.returncode != 0
    assert "RESERVED one" in second.stderr
    ask("end")
    wait_for("the first to end", lambda: not folder.exists(), deadline=5)
    assert start(folder.parent / "three", 30).returncode == 0
    asker(folder.parent / "three")("end")


def test_nonsense_is_answered(session: tuple[Path, Ask]) -> None:
    folder, ask = session
    assert "unknown request" in ask("dance")["error"]
    assert "no process named x" in ask("signal", name="x", number=9)["error"]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(folder / "agent.sock"))
        sock.sendall(b"{not json\n")
        assert "error" in json.loads(sock.makefile().readline())
    assert ask("renew")["processes"] == {}


def kernel_says(folder: Path) -> None:
    """Have this machine's kernel log a message: a loop device gets a file of another size."""
    file = folder / "disk"
    file.write_bytes(bytes(1 << 16))
    device = subprocess.run(
        ["losetup", "--find", "--show", file], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        os.truncate(file, 1 << 17)
        subprocess.run(["losetup", "--set-capacity", device], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the kernel's log")
def test_the_kernels_reports_are_kept(session: tuple[Path, Ask]) -> None:
    folder, ask = session
    said = "detected capacity change"
    kernel_says(folder.parent)  # this message came before
    assert ask("kernel") == {"error": "ValueError: the kernel's log is not watched"}
    assert ask("watch kernel", pattern=said) == {}
    Path("/dev/kmsg").write_text(f"<2>a process of the user's {said}\n")
    assert ask("kernel") == {"kept": []}
    before = time.monotonic()
    kernel_says(folder.parent)
    kept = ask("kernel")["kept"]
    assert kept
    assert all(said in text for _, text in kept)
    assert all(before - 1 < seconds < time.monotonic() + 1 for seconds, _ in kept)
    assert ask("kernel")["kept"] == kept


def test_a_process_that_dies_leaves_a_core(session: tuple[Path, Ask]) -> None:
    folder, ask = session
    spawn(folder, ask, "ulimit -c")
    ask("wait", name="p", seconds=10)
    assert (folder / "log").read_text() == f"{(1 << 29) // 512}\n"


# -- undos -------------------------------------------------------------------------------------


def kill_agent(folder: Path) -> None:
    pid = int((folder / "agent.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_for("the agent to end", lambda: gone(pid), deadline=5)


def test_two_undos_of_one_name_both_run(session: tuple[Path, Ask]) -> None:
    """The newest is first. The same command twice is one: the newest place is its place."""
    folder, ask = session
    record = folder.parent / "record"
    for command in ("same", "first", "second", "same"):
        ask("undo", name="a", command=f"echo {command} | tee -a {record}")
    ask("undo", name="b", command=f"echo b >>{record}")
    assert ask("undo now", names=["a"]) == {"undone": {"a": [0, "same\nsecond\nfirst\n"]}}
    assert ask("end") == {"undone": {"b": [0, ""]}}
    assert record.read_text() == "same\nsecond\nfirst\nb\n"


def test_an_undo_that_failed_at_once_is_told_at_the_end_again(session: tuple[Path, Ask]) -> None:
    """The first answer may be lost with the link."""
    _, ask = session
    ask("undo", name="a", command="echo no; exit 4")
    assert ask("undo now", names=["a"]) == {"undone": {"a": [4, "no\n"]}}
    assert ask("end") == {"undone": {"a": [4, "no\n"]}}


def test_the_next_agent_undoes_what_a_killed_one_left(start: Start, tmp_path: Path) -> None:
    root, record = tmp_path / "hil", tmp_path / "record"
    assert start(root / "one", 30).returncode == 0
    ask = asker(root / "one")
    (root / "one" / "kept").touch()
    ask("undo", name="a", command=f"[ -e {root}/one/kept ] && echo a >>{record}")
    ask("undo", name="b", command=f"echo b >>{record}; echo no; exit 3")
    # This process has left its parent, its group and its session.
    spawn(root / "one", ask, f"setsid sleep 600 & echo $! >{tmp_path}/pid")
    assert ask("wait", name="p", seconds=10) == {"status": 0}
    escaped = int((tmp_path / "pid").read_text())
    kill_agent(root / "one")
    assert not gone(escaped)
    assert start(root / "two", 30).returncode == 0
    ask = asker(root / "two")
    (left,) = ask("inherited", seconds=10)["inherited"]
    assert (left["session"], left["why"]) == ("one", "its agent was killed")
    assert left["undone"] == {"b": [3, "no\n"], "a": [0, ""]}
    assert record.read_text() == "b\na\n"
    wait_for("what has escaped to be gone", lambda: gone(escaped), deadline=5)
    assert not (root / "one").exists()
    assert ask("inherited") == {"inherited": [left]}  # the first answer may be lost
    assert ask("end") == {"undone": {}}
    assert {path.name for path in root.iterdir()} == {"lock", "undos"}


def test_an_undo_that_was_killed_with_its_agent_runs_again(start: Start, tmp_path: Path) -> None:
    root, record = tmp_path / "hil", tmp_path / "record"
    assert start(root / "one", 30).returncode == 0
    ask = asker(root / "one")
    ask("undo", name="a", command=f"echo a >>{record}")
    ask("undo", name="b", command=f"echo b >>{record}; [ -e {record}.2 ] || exec sleep 600")
    assert ask("end", seconds=0.5) == {"doing": "undo b"}
    kill_agent(root / "one")
    record.with_suffix(".2").touch()
    assert start(root / "two", 30).returncode == 0
    ask = asker(root / "two")
    (left,) = ask("inherited", seconds=10)["inherited"]
    assert left["undone"] == {"b": [0, ""], "a": [0, ""]}
    assert record.read_text() == "b\nb\na\n"
    ask("end")


def test_nothing_begins_before_the_rest_is_undone(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "hil"
    assert start(root / "one", 30).returncode == 0
    asker(root / "one")("undo", name="a", command="sleep 1")
    kill_agent(root / "one")
    assert start(root / "two", 30).returncode == 0
    ask = asker(root / "two")
    assert "is not undone yet" in ask("undo", name="b", command="true")["error"]
    assert ask("renew") == {"processes": {}}
    assert ask("inherited", seconds=0.1) == {"doing": "undo a"}
    assert len(ask("inherited")["inherited"]) == 1
    assert ask("undo", name="b", command="true") == {}
    assert ask("end") == {"undone": {"b": [0, ""]}}


def test_the_next_session_is_told_how_a_lease_ended(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "hil"
    assert start(root / "one", 1.0).returncode == 0
    asker(root / "one")("undo", name="a", command="echo why; exit 3")
    wait_for("the lease to run out", lambda: not (root / "one").exists(), deadline=10)
    assert start(root / "two", 30).returncode == 0
    ask = asker(root / "two")
    (left,) = ask("inherited")["inherited"]
    assert (left["session"], left["why"]) == ("one", "its lease ran out")
    assert left["undone"] == {"a": [3, "why\n"]}
    ask("end")


@pytest.fixture
def hasty() -> Start:
    """Return a call that starts the agent with short limits. It is the agent itself otherwise."""
    text = script(AGENT).decode()
    for limit in ("TERM_SECONDS", "KILL_SECONDS", "UNDO_SECONDS", "START_SECONDS"):
        text, found = re.subn(rf"(?<=\\n){limit} = [\d.]+(?=\\n)", f"{limit} = 1.0", text)
        assert found == 1
    return starter(sys.executable, text)


def test_one_undo_that_cannot_be_started_drops_no_other(hasty: Start, tmp_path: Path) -> None:
    """For a while the agent can open nothing, which an undo needs to be started."""
    folder, record = tmp_path / "hil" / "one", tmp_path / "record"
    assert hasty(folder, 30).returncode == 0
    ask = asker(folder)
    limit = "prlimit --pid $PPID --nofile="
    lift = f"(sleep 1.5; {limit}1024:) >/dev/null 2>&1 &"
    ask("undo", name="a", command=f"echo a >>{record}")
    ask("undo", name="b", command=f"echo b >>{record}")
    ask("undo", name="c", command=f"{limit}3:; echo c >>{record}; {lift}")
    undone = ask("end")["undone"]
    assert undone["b"][0] == 126
    assert "could not be started: [Errno 24]" in undone["b"][1]
    assert undone["a"] == [0, ""]
    assert record.read_text() == "c\na\n"


def test_the_agent_answers_while_an_undo_runs(session: tuple[Path, Ask]) -> None:
    folder, ask = session
    ask("undo", name="a", command="sleep 1.5")
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(folder / "agent.sock"))
        slow.sendall(b'{"do": "undo now", "names": ["a"]}\n')
        began = time.monotonic()
        assert ask("renew") == {"processes": {}}
        assert time.monotonic() - began < 1
        assert json.loads(slow.makefile().readline()) == {"undone": {"a": [0, ""]}}


def test_a_session_that_ends_says_so(session: tuple[Path, Ask]) -> None:
    folder, ask = session
    done = folder.parent / "done"
    ask("undo", name="a", command=f"until [ -e {done} ]; do sleep 0.1; done")
    wait_for(
        "the undo to be told",
        lambda: ask("end", seconds=0.1) == {"doing": "undo a"},
        deadline=10,
    )
    assert ask("renew") == {"over": "the harness ended it"}
    assert ask("undo", name="b", command="true") == {"over": "the harness ended it"}
    done.touch()
    assert ask("end") == {"undone": {"a": [0, ""]}}


# -- processes ---------------------------------------------------------------------------------


def state(pid: int) -> str:
    """Return the state of a process, proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_number_of_a_process_that_has_ended_is_no_others(session: tuple[Path, Ask]) -> None:
    """The end sends signals to its process group."""
    folder, ask = session
    pid = spawn(folder, ask, f"sleep 600 & echo $! >{folder.parent}/pid; exit 3")
    assert ask("wait", name="p", seconds=10) == {"status": 3}
    member = int((folder.parent / "pid").read_text())
    assert ask("signal", name="p", number=9) == {}
    assert ask("renew")["processes"] == {"p": 3}
    assert state(pid) == "Z"
    assert state(member) != "Z"
    ask("end")
    assert gone(pid)
    wait_for("the rest of its group to go", lambda: gone(member), deadline=5)


def test_a_process_may_follow_one_of_its_name(session: tuple[Path, Ask]) -> None:
    folder, ask = session
    first = spawn(folder, ask, "exit 3")
    ask("wait", name="p", seconds=10)
    second = spawn(folder, ask, "kill -TERM $$")
    assert gone(first)
    assert ask("wait", name="p", seconds=10) == {"status": -15}
    assert ask("pid", name="p") == {"pid": second}


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder of a file system that is frozen: a process that writes to it cannot be killed.
    Thawed afterwards."""
    if os.geteuid() != 0 or not shutil.which("fsfreeze"):
        pytest.skip("only root freezes a file system")
    image, folder = tmp_path / "image", tmp_path / "frozen"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    subprocess.run(["fsfreeze", "--freeze", str(folder)], check=True)
    yield folder
    subprocess.run(["fsfreeze", "--unfreeze", str(folder)], check=True)
    umount = ["umount", str(folder)]
    wait_for(
        "what was stuck to end",
        lambda: subprocess.run(umount, capture_output=True, check=False).returncode == 0,
        deadline=5,
    )


def test_what_is_stuck_in_the_kernel_stops_nothing_else(
    hasty: Start, frozen: Path, tmp_path: Path
) -> None:
    root, record = tmp_path / "hil", tmp_path / "record"
    assert hasty(root / "one", 30).returncode == 0
    ask = asker(root / "one")
    pid = spawn(root / "one", ask, f"exec touch {frozen}/p")
    wait_for("the process to be stuck", lambda: state(pid) == "D", deadline=5)
    ask("undo", name="a", command=f"echo a >>{record}")
    ask("undo", name="b", command=f"exec touch {frozen}/b")
    undone = ask("end")["undone"]
    stuck = "does not end when it is killed: it is stuck in the kernel"
    assert undone["process p"] == [124, f"process {pid} {stuck}"]
    assert undone["b"][0] == 124
    assert stuck in undone["b"][1]
    assert undone["a"] == [0, ""]
    assert record.read_text() == "a\n"
    assert hasty(root / "two", 30).returncode == 0
    ask = asker(root / "two")
    (left,) = ask("inherited")["inherited"]
    assert left["undone"] == undone
    ask("end")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the kernel's log")
def test_a_log_with_too_many_reports_says_so() -> None:
    log = KernelLog("WARNING: ")
    for number in range(log.MOST_KEPT + 5):
        log.keep(float(number), "WARNING: again")
    os.close(log.file)
    assert len(log.kept) == log.MOST_KEPT
    assert log.kept[-1][1] == f"WARNING: again (no more than {log.MOST_KEPT} are kept)"
    assert log.kept[-2][1] == "WARNING: again"
