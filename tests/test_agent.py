"""The host agent ends what it started when its lease expires, undoes what was done, and reserves
the host. It runs as a real process here."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.waiting import wait_for
from tests.interpreters import INTERPRETERS

AGENT = Path(__file__).parent.parent / "harness/host/agent.py"
Ask = Callable[..., dict[str, Any]]
Start = Callable[[Path, float], subprocess.CompletedProcess[str]]


@pytest.fixture(params=INTERPRETERS)
def start(request: pytest.FixtureRequest) -> Start:
    def go(folder: Path, lease: float) -> subprocess.CompletedProcess[str]:
        folder.mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            [request.param, "-I", str(AGENT), str(folder), str(lease)],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    return go


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
    assert ask("undo now", names=["a", "unknown"]) == {"undone": {"a": [0, ""]}}
    ask("end")
    assert record.read_text() == "a\n"


def test_a_lease_that_is_not_renewed_ends_everything(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "hil" / "short"
    record = tmp_path / "record"
    assert start(folder, 1.0).returncode == 0
    ask = asker(folder)
    ask("undo", name="a", command=f"echo undone >{record}")
    pid = spawn(folder, ask, "sleep 600")
    for _ in range(4):
        time.sleep(0.4)  # each renewal is within the lease; all together take longer than it
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
