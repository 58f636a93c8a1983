"""The console returns exact output although kernel messages come between. The guest's real program
`hil` runs behind a socket here."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError, LabError
from harness.guest.console import (
    CRASH,
    READY,
    Console,
    GuestCommandError,
    GuestCrashedError,
    GuestSilentError,
    MessageSplitter,
    Output,
)
from harness.guest.guest import Guest

MESSAGE = "[   11.272523] arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:"


@pytest.fixture
def shell(
    tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Console, socket.socket]]:
    """Yield a console on a shell that has `hil`, and the socket's far end, to write messages to."""
    # A guest has a /tmp of its own. Here others run the same tests at the same time.
    monkeypatch.setattr("harness.guest.console._SCRIPT", str(tmp_path / "script"))
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    far = theirs.fileno()
    with subprocess.Popen(["sh"], stdin=far, stdout=far, stderr=far, env=environment) as process:
        with Console.on(ours) as console:
            yield console, theirs
        theirs.close()
        process.kill()


def test_output_and_status_are_exact(shell: tuple[Console, socket.socket]) -> None:
    console, _ = shell
    done = console.run("printf 'a\\r\\n[ 1.000000] b'; echo c >&2; exit 7", check=False)
    assert (done.status, done.data) == (7, b"a\r\n[ 1.000000] bc\n")
    assert console.run("head -c 100000 /dev/zero").data == bytes(100_000)


def test_messages_in_the_middle_do_no_harm(shell: tuple[Console, socket.socket]) -> None:
    console, far = shell
    stop = threading.Event()

    def printk() -> None:
        while not stop.wait(0.001):
            far.sendall(f"{MESSAGE}\r\n".encode())

    kernel = threading.Thread(target=printk)
    kernel.start()
    try:
        expected = "".join(f"{n}\n" for n in range(1, 3001))
        assert console.run("seq 3000").text == expected
    finally:
        stop.set()
        kernel.join()
    assert MESSAGE in console.messages


def test_damaged_output_is_told() -> None:
    """Output that a foreign character changed is reported as damaged. With that character the frame
    is still valid base64, but no longer the program's output."""
    ours, far = socket.socketpair()

    def answer() -> None:
        nonce = far.recv(4096).split()[2].decode()
        far.sendall(f"~HIL:{nonce}:\naGVsAG8K\n:0:363a3020~\n".encode())

    with far, Console.on(ours) as console:
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(HarnessError, match="damaged"):
            console.run("echo hello")


def test_a_failed_command_is_an_error(shell: tuple[Console, socket.socket]) -> None:
    with pytest.raises(GuestCommandError, match=r"with status 3: why"):
        shell[0].run("echo why; exit 3")


def test_silence_has_a_deadline_and_a_name(shell: tuple[Console, socket.socket]) -> None:
    with pytest.raises(GuestSilentError, match=r"waited 1 s for the end of `sleep 60`"):
        shell[0].run("sleep 60", timeout=1)


def test_no_time_left_is_silence_too(shell: tuple[Console, socket.socket]) -> None:
    """A deadline that has passed ends the wait. The case needs care, because a timeout of exactly 0
    makes a socket non-blocking."""
    console, _ = shell
    with pytest.raises(GuestSilentError, match="waited 0 s for a word"):
        console.wait_for("a word", b"never", 0.0)


def test_a_panic_is_told_from_silence(shell: tuple[Console, socket.socket]) -> None:
    console, far = shell
    panic = "[    5.000001] Kernel panic - not syncing: Attempted to kill init!\r\n"
    end = "[    5.000002] ---[ end Kernel panic - not syncing ]---\r\n"
    threading.Timer(0.2, lambda: far.sendall((panic + end).encode())).start()
    with pytest.raises(GuestCrashedError, match="Attempted to kill init"):
        console.run("sleep 60", timeout=30)


@pytest.mark.parametrize(
    ("text", "crashed"),
    [
        ("UEFI firmware\n\nSynchronous Exception at 0x000000004774C0A0\nPC 0x00004774C0A0", True),
        ("[    1.927860] Kernel panic - not syncing: Oops: Fatal exception", True),
        ("[    0.250228] Unable to handle kernel NULL pointer dereference at virtual", True),
        ("UEFI firmware (version 2025.02-8)\nEFI stub: Booting Linux Kernel...\n", False),
    ],
)
def test_words_of_a_crash(text: str, crashed: bool) -> None:
    assert bool(CRASH.search(text)) is crashed


def test_a_console_that_closes_is_told(shell: tuple[Console, socket.socket]) -> None:
    console, far = shell
    threading.Timer(0.2, lambda: far.shutdown(socket.SHUT_RDWR)).start()
    with pytest.raises(LabError, match="console closed"):
        console.run("sleep 60", timeout=30)


def test_a_console_that_closes_before_it_has_read_a_command_is_told() -> None:
    """The link is lost, or QEMU ends, with the command on its way: the kernel reports a reset."""
    ours, theirs = socket.socketpair()
    with Console.on(ours) as console:
        console.send("echo never read")
        theirs.close()
        with pytest.raises(LabError, match="console closed before the prompt"):
            console.wait_for("the prompt", READY, 5)
        assert console.is_closed()


@pytest.mark.parametrize("size", [3000, 4000, 100_000])
def test_a_command_may_be_longer_than_a_line(
    shell: tuple[Console, socket.socket], size: int
) -> None:
    words = "é'\"$x\\" * (size // 6)
    assert shell[0].run(f"echo {shlex.quote(words)}; exit 7", check=False) == Output(
        f"echo {shlex.quote(words)}; exit 7", 7, f"{words}\n".encode()
    )
    assert shell[0].run("for i in 1 2\ndo echo $i\ndone").text == "1\n2\n"


def test_a_tty_acts_on_no_character_of_a_command(
    tool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-U, for one, would have it forget the line, and Ctrl-D would end the shell."""
    monkeypatch.setattr("harness.guest.console._SCRIPT", str(tmp_path / "script"))
    master, slave = pty.openpty()
    ours, far = socket.socketpair()
    environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}

    def type_in() -> None:
        with contextlib.suppress(ConnectionResetError):  # the console had not read all
            while typed := far.recv(4096):
                os.write(master, typed)

    def print_out() -> None:
        # A master whose last slave is closed fails with EIO.
        with contextlib.suppress(OSError):
            while printed := os.read(master, 4096):
                far.sendall(printed)

    text = "a\tb\x03\x04\x15\x16\x17\x7f\x1bc"
    copying = [threading.Thread(target=one) for one in (type_in, print_out)]
    with subprocess.Popen(["sh"], stdin=slave, stdout=slave, stderr=slave, env=environment) as sh:
        os.close(slave)
        for one in copying:
            one.start()
        try:
            with Console.on(ours) as console:
                console.send("stty -echo")
                assert console.run(f"printf %s {shlex.quote(text)}", timeout=5).text == text
        finally:
            sh.kill()
            far.shutdown(socket.SHUT_RD)
    for one in copying:
        one.join()
    far.close()
    os.close(master)


def test_a_long_command_is_shortened_in_messages(shell: tuple[Console, socket.socket]) -> None:
    with pytest.raises(
        GuestCommandError, match=r"^`: x{900,1000}…` ended in the guest with status 1: "
    ):
        shell[0].run(f": {'x' * 5000}; exit 1")


TEXT = st.text("ab[].:0123456789 ~\n", max_size=40)


@given(TEXT, TEXT, st.integers(1, 7))
def test_splitter_does_not_depend_on_pieces(before: str, after: str, size: int) -> None:
    stream = f"{before}{MESSAGE}\r\n{after}\n".encode()
    whole = MessageSplitter()
    expected = whole.feed(stream)
    parted = MessageSplitter()
    fed = [parted.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
    assert b"".join(rest for rest, _ in fed) == expected[0]
    assert [message for _, messages in fed for message in messages] == expected[1]


@given(st.binary(max_size=60).map(lambda b: b.replace(b"[", b"(")), st.integers(0, 60))
def test_a_message_at_any_place_leaves_no_trace(text: bytes, place: int) -> None:
    splitter = MessageSplitter()
    stream = text[:place] + MESSAGE.encode() + b"\r\n" + text[place:]
    assert splitter.feed(stream) == (text, [MESSAGE.encode()])


def test_a_crash_that_begins_before_the_console_is_told_whole() -> None:
    """The kernel prints on the UART until the console is there, in the middle of a report even."""
    ours, far = socket.socketpair()
    uart = "[    1.7] Unable to handle kernel paging request at virtual address ffff800082280fff"
    over = "[    2.134567] Kernel panic - not syncing: Fatal exception\r\n---[ end Kernel panic\r\n"
    with far, Console.on(ours) as console:
        far.sendall(over.encode())
        guest = SimpleNamespace(name="guest0", console=console, uart_text=lambda: uart)
        with pytest.raises(GuestCrashedError) as crash:
            Guest.wait_ready(cast(Guest, guest))
    assert "Kernel panic" in str(crash.value)
    assert f"last on its UART:\n  | {uart}" in str(crash.value)


def test_a_crash_that_is_on_the_uart_only_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as a guest that is silent, which a known defect may explain."""
    monkeypatch.setattr("harness.guest.guest._UART_SECONDS", 0.05)
    ours, far = socket.socketpair()
    uart, counters = "Kernel panic - not syncing: no console", lambda: "0xffff8000"
    guest = SimpleNamespace(name="guest0", uart_text=lambda: uart, _program_counters=counters)
    with far, Console.on(ours) as guest.console:
        with pytest.raises(
            GuestCrashedError, match=r"^the guest crashed before guest guest0 to re"
        ):
            Guest.wait_ready(cast(Guest, guest))
        uart = "[    1.0] nvme nvme0: pci function 0000:01:00.0"
        with pytest.raises(
            GuestSilentError, match=r"^waited 0 s for guest guest0 to reach its pro"
        ):
            Guest.wait_ready(cast(Guest, guest), deadline=0.1)


def test_a_crash_is_the_products_although_the_uart_cannot_be_read() -> None:
    def lost() -> str:
        raise LabError("the link is lost")

    ours, far = socket.socketpair()
    with far, Console.on(ours) as console:
        far.sendall(b"[    2.134567] Kernel panic - not syncing\r\n---[ end Kernel panic\r\n")
        guest = SimpleNamespace(name="guest0", console=console, uart_text=lost)
        with pytest.raises(GuestCrashedError, match="its UART cannot be read: the link is lost"):
            Guest.wait_ready(cast(Guest, guest))
