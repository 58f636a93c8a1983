"""Much output comes out of a guest through a port of its own. The guest's real program `hil` runs
here, and writes to a terminal that stands for the port; a Unix socket stands for QEMU's end."""

from __future__ import annotations

import base64
import contextlib
import os
import pty
import selectors
import socket
import subprocess
import threading
import time
import tty
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import HarnessError, LabError
from harness.guest import bulk
from harness.guest.bulk import Bulk
from harness.guest.console import Console, GuestCommandError, GuestSilentError


class Port:
    """A virtio port as a guest has it, and QEMU's end of it: a server of one connection at a time,
    that takes nothing from the guest while nobody is connected."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bulk.sock"
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self.device = Path(os.ttyname(slave))
        self._slave = slave
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self.path))
        self._server.listen(4)
        self._server.settimeout(0.05)
        self._over = threading.Event()
        #: The number of the byte that is passed on with its bits inverted, if any.
        self.damaged: int | None = None
        #: After so many bytes QEMU's end closes the connection. What it has of later ones goes to
        #: who connects next.
        self.breaks_after: int | None = None
        self._late = bytearray()
        self.connections = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._server.accept()
                self.connections += 1
                with connection, contextlib.suppress(OSError):
                    self._pass_on(connection)

    def _pass_on(self, connection: socket.socket) -> None:
        sent = 0
        connection.sendall(self._late)
        self._late.clear()
        with selectors.DefaultSelector() as ready:
            ready.register(self._master, selectors.EVENT_READ)
            ready.register(connection, selectors.EVENT_READ)
            while not self._over.is_set():
                for key, _ in ready.select(0.05):
                    if key.fileobj is connection:
                        return  # nothing is ever sent to the guest: it is the end
                    data = bytearray(os.read(self._master, 1 << 16))
                    if self.damaged is not None and sent <= self.damaged < sent + len(data):
                        data[self.damaged - sent] ^= 0xFF
                    if self.breaks_after is not None and sent + len(data) > self.breaks_after:
                        connection.sendall(data[: self.breaks_after - sent])
                        self._late = data[self.breaks_after - sent :]
                        return
                    connection.sendall(data)
                    sent += len(data)

    def connect(self) -> socket.socket:
        near = socket.socket(socket.AF_UNIX)
        near.connect(str(self.path))
        return near

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._server.close()
        os.close(self._slave)
        os.close(self._master)


class Bench:
    """A guest with its console and its port."""

    def __init__(self, console: Console, port: Port) -> None:
        self.console, self.port = console, port
        self.notes: list[str] = []
        self.names: Path
        self.bulk: Bulk

    def named(self, number: int, name: str) -> None:
        """Give the guest a port of this number and name, besides those that it has."""
        folder = self.names / f"vport{number}p1"
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")


@pytest.fixture
def bench(tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Yield a guest whose port is the second of two, connected."""
    devices, names = tmp_path / "dev", tmp_path / "names"
    for folder in (devices, names):
        folder.mkdir()
    monkeypatch.setattr("harness.guest.console._SCRIPT", str(tmp_path / "script"))
    monkeypatch.setattr("harness.guest.bulk._PORTS", str(names))
    monkeypatch.setattr("harness.guest.bulk._DEVICES", str(devices))
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    far = theirs.fileno()
    with contextlib.ExitStack() as stack:
        port = Port(tmp_path)
        stack.callback(port.close)
        shell = stack.enter_context(
            subprocess.Popen(["sh"], stdin=far, stdout=far, stderr=far, env=environment)
        )
        stack.callback(shell.kill)
        stack.callback(theirs.close)
        console = stack.enter_context(Console.on(ours))
        here = Bench(console, port)
        here.names = names
        here.named(1, "another")
        here.named(3, "hil.bulk")
        (devices / "vport3p1").symlink_to(port.device)
        here.bulk = stack.enter_context(Bulk.on(console, port.connect, here.notes.append))
        yield here


def test_output_and_status_are_exact(bench: Bench) -> None:
    done = bench.bulk.run("printf 'a\\r\\n\\0b'; echo c >&2; exit 7", timeout=10, check=False)
    assert (done.status, done.data) == (7, b"a\r\n\0bc\n")
    assert bench.bulk.run("true", timeout=10).data == b""
    assert bench.notes == []
    # The console carries the receipt only.
    receipt = f"{len(done.data)}:{zlib.crc32(done.data):08x}\n".encode()
    assert base64.b64encode(receipt).decode() in bench.console.tail()
    assert base64.b64encode(done.data).decode() not in bench.console.tail()


def test_megabytes_come_whole(bench: Bench, tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(content)
    began = time.monotonic()
    for _ in range(2):
        assert bench.bulk.run(f"cat {tmp_path}/file", timeout=30).data == content
    assert bench.port.connections == 1
    # On a host it is some megabytes a second; here nothing but a mistake is as slow as a console.
    assert time.monotonic() - began < 10


def test_a_failed_command_is_an_error(bench: Bench) -> None:
    with pytest.raises(GuestCommandError, match=r"^`echo why; exit 3` .* with status 3: why"):
        bench.bulk.run("echo why; exit 3", timeout=10)
    with pytest.raises(HarnessError, match="status 127"):
        bench.bulk.run("no-such-program", timeout=10)


def test_a_guest_without_the_port_uses_its_console(bench: Bench) -> None:
    """It is told once, and the command runs once."""
    (bench.names / "vport3p1/name").write_text("other\n")
    ran = bench.names / "ran"
    done = bench.bulk.run(f"echo x >>{ran}; cat {ran}; exit 4", timeout=10, check=False)
    assert (done.status, done.text) == (4, "x\n")
    assert bench.bulk.run("echo y", timeout=10).text == "y\n"
    assert len(bench.notes) == 1
    assert "no virtio port hil.bulk" in bench.notes[0]


def test_a_guest_without_any_port_uses_its_console(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.guest.bulk._PORTS", "/nowhere")
    assert bench.bulk.run("echo y", timeout=10).text == "y\n"
    assert len(bench.notes) == 1


def test_damage_is_told(bench: Bench) -> None:
    bench.port.damaged = 100_000
    with pytest.raises(HarnessError, match=r"output of `seq 90000` was damaged on its way"):
        bench.bulk.run("seq 90000", timeout=10)


def test_a_connection_that_breaks_is_told_and_made_anew(bench: Bench) -> None:
    """The guest goes on with what it sends. That is nobody's, and is not taken for the next
    output."""
    bench.port.breaks_after = 100
    with pytest.raises(LabError, match=r"port hil.bulk closed: 77 of 3893 bytes came"):
        bench.bulk.run("seq 1000", timeout=10)
    bench.port.breaks_after = None
    assert bench.bulk.run("seq 20000", timeout=10).text.split()[-1] == "20000"
    assert bench.port.connections == 2


def test_what_does_not_come_has_a_deadline(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest has sent what its kernel still holds."""
    monkeypatch.setattr(bulk, "SILENT_SECONDS", 0.5)
    (bench.names.parent / "dev/vport3p1").unlink()
    (bench.names.parent / "dev/vport3p1").write_bytes(b"")
    with pytest.raises(LabError, match=r"nothing came .* for 0 s: 0 of 3 bytes came"):
        bench.bulk.run("echo hi", timeout=10)


def test_a_port_that_nobody_reads_is_told(bench: Bench, tool: Path) -> None:
    """The guest's program ends by itself: nothing keeps the port for ever."""
    bench.bulk._drop()
    began = time.monotonic()
    argv: list[str | Path] = [tool, "send", bench.port.device, "tag", "cat /dev/zero"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"hil: {bench.port.device}: Connection timed out\n"
    assert 9 < time.monotonic() - began < 20


def test_a_port_that_cannot_be_opened_is_told(bench: Bench) -> None:
    (bench.names.parent / "dev/vport3p1").unlink()
    with pytest.raises(LabError, match=r"`true` was not sent: hil: .*vport3p1: No such file"):
        bench.bulk.run("true", timeout=10)


def test_silence_is_the_consoles(bench: Bench) -> None:
    with pytest.raises(GuestSilentError, match="waited 1 s for the end of `echo a; sleep 60`"):
        bench.bulk.run("echo a; sleep 60", timeout=1)


def test_nothing_stays_connected(bench: Bench) -> None:
    before = threading.active_count()
    with Bulk.on(bench.console, bench.port.connect, bench.notes.append):
        pass
    assert threading.active_count() == before
