"""The comparison with labgrid drives a shell on a terminal here, as it drives a guest's."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import peers
from harness.errors import LabError
from harness.guest.console import Console

MESSAGE = b"[   11.272523] storm\r\n"
COMMANDS = 8


@contextlib.contextmanager
def console(tool: Path, *, storm: bool) -> Iterator[socket.socket]:
    """Yield a socket to a shell on a terminal without echo, as a guest's init starts it. In a storm
    messages come amid what it prints."""
    ours, far = socket.socketpair()
    master, terminal = pty.openpty()
    tty.setraw(master)
    environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}", "ENV": ""}
    shell = subprocess.Popen(
        ["setsid", "-c", "sh"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
    )
    os.close(terminal)

    def down() -> None:
        with contextlib.suppress(OSError):  # the console has closed, with answers unread
            while data := far.recv(4096):
                os.write(master, data)

    def up() -> None:
        with contextlib.suppress(OSError):  # the shell has ended
            while data := os.read(master, 16):
                far.sendall(data)
                if storm:
                    far.sendall(MESSAGE)

    threads = [threading.Thread(target=one, daemon=True) for one in (down, up)]
    for one in threads:
        one.start()
    try:
        yield ours
    finally:
        shell.kill()
        shell.wait()
        ours.close()
        far.shutdown(socket.SHUT_RDWR)
        for one in threads:
            one.join()
        far.close()
        os.close(master)


@pytest.mark.parametrize("storm", [False, True], ids=["calm", "storm"])
def test_our_console_tells_every_answer(tool: Path, storm: bool) -> None:
    with console(tool, storm=storm) as sock, Console.on(sock) as ours:
        seconds, wrong = peers.answers(peers.by_console(ours), COMMANDS)
    assert wrong == 0
    assert 0 < seconds < peers._PATIENCE


def test_the_shell_driver_works_on_a_socket(tool: Path) -> None:
    pytest.importorskip("labgrid")
    with console(tool, storm=False) as sock, peers.by_shell_driver(sock) as run:
        assert peers.answers(run, COMMANDS)[1] == 0


def test_what_does_not_answer_is_wrong(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_PATIENCE", 0.2)
    with console(tool, storm=False) as sock, Console.on(sock) as ours:
        assert peers.answer(peers.by_console(ours), "sleep 2") is None


def test_without_labgrid_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == "labgrid"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "labgrid", None)
    with pytest.raises(LabError, match="needs the Python package labgrid") as told:
        next(peers.measure(1))
    assert told.value.fix == "pip install 'grace-smmu-hil[labgrid]'"
