"""What a host prints on its console is recorded with its time, whatever carries the console, and
tells what the host died of."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.console import recording as recordings
from harness.console.file import FileConsole, _FileStream
from harness.console.kinds import ConsoleEntry
from harness.console.recording import Recording
from harness.console.source import ConsoleLostError, ConsoleSource, ConsoleStream
from harness.console.stamps import Stamper, parse
from harness.console.telnet import IAC, Telnet
from harness.errors import LabError
from harness.host.connection import LinkLostError
from harness.host.last_words import (
    HostFirmwareError,
    HostKernelError,
    HostResetError,
    LastWords,
)
from harness.report import witnesses
from harness.report.timeline import Look
from harness.waiting import wait_for
from tests.bmc import start
from tests.bmc.start import PASSWORD, USER
from tests.sshd import sshd
from tests.suite_run import run_suite, write_suite

PANIC = "[   12.345678] Kernel panic - not syncing: sysrq triggered crash"


@contextlib.contextmanager
def recorded(
    source: ConsoleSource, folder: Path, problems: list[str] | None = None
) -> Iterator[Recording]:
    told = [] if problems is None else problems
    with Recording.of("grace-1", source, folder / "console.txt", told.append) as recording:
        yield recording


def await_text(recording: Recording, wanted: str) -> str:
    """Wait until a text is recorded, and return all that is."""
    wait_for(wanted, lambda: wanted in recording.text(), deadline=10, last_seen=recording.text)
    return recording.text()


# -- the form ----------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=30)))
def test_each_line_has_the_time_when_it_began(pieces: list[bytes]) -> None:
    stamper = Stamper()
    out = b"".join(stamper.stamped(data, float(at)) for at, data in enumerate(pieces))
    every = b"".join(pieces).replace(b"\r", b"")
    lines = every.removesuffix(b"\n").split(b"\n") if every else []
    recorded = out.removesuffix(b"\n").split(b"\n") if out else []
    assert [line.partition(b" ")[2] for line in recorded] == lines
    times = [when for when, _ in parse(out.decode(errors="replace"))]
    assert None not in times
    assert times == sorted(times, key=lambda when: when or 0.0)


def test_a_time_is_read_back() -> None:
    out = Stamper().stamped(b"one\ntwo\n", 1_796_000_000.25).decode()
    assert list(parse(out)) == [(1_796_000_000.25, "one"), (1_796_000_000.25, "two")]
    assert out.startswith("2026-11-30T00:53:20.250000Z one")


def test_what_only_a_terminal_obeys_is_left_out() -> None:
    firmware = b"\x1b[2J\x1b[04D\x1b[=3h\x1b[01;01HUEFI firmware\x07\x00\r\n\x1b[0m> \x0cshell\n"
    out = Stamper().stamped(firmware, 0.0).decode()
    assert [text for _, text in parse(out)] == ["UEFI firmware", "> shell"]


def test_a_line_of_the_harness_stands_alone() -> None:
    stamper = Stamper()
    out = stamper.stamped(b"login: ", 1.0) + stamper.noted("the host\nis lost", 2.0)
    out += stamper.stamped(b"more\n", 3.0)
    assert list(parse(out.decode())) == [
        (1.0, "login: "),
        (2.0, "hil: the host is lost"),
        (3.0, "more"),
    ]


# -- TCP ---------------------------------------------------------------------------------------


class Server:
    """A serial port at a TCP port, for one client after the other."""

    def __init__(self, port: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self.listener.getsockname()[1]
        self.client: socket.socket | None = None

    def accept(self) -> None:
        self.listener.settimeout(10)
        self.client, _ = self.listener.accept()

    def say(self, data: bytes) -> None:
        assert self.client
        self.client.sendall(data)

    def hang_up(self) -> None:
        assert self.client
        self.client.close()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.listener.close()
    if one.client:
        one.client.close()


def tcp(server: Server, protocol: str = "raw") -> ConsoleSource:
    entry = {"address": "127.0.0.1", "port": server.port, "protocol": protocol}
    return ConsoleEntry.model_validate({"tcp": entry}).source


def test_a_console_at_a_tcp_port_is_recorded(server: Server, tmp_path: Path) -> None:
    before = time.time()
    with recorded(tcp(server), tmp_path) as recording:
        server.accept()
        server.say(b"[ 1.0] booting\r\n[ 2.0] bo")
        await_text(recording, "[ 2.0] bo")
        server.say(b"oted\r\nlogin: ")
        assert await_text(recording, "login: ").splitlines()[1:] == [
            "[ 1.0] booting",
            "[ 2.0] booted",
            "login: ",
        ]
        recording.note("it is tested")
    kept = list(parse((tmp_path / "console.txt").read_text()))
    assert [text for _, text in kept[-2:]] == ["hil: it is tested", "hil: the recording ends"]
    assert all(when and before <= when <= time.time() for when, _ in kept)


def test_what_has_come_is_in_the_text_at_once(server: Server, tmp_path: Path) -> None:
    with recorded(tcp(server), tmp_path) as recording:
        server.accept()
        for number in range(20):
            server.say(f"line {number}\n".encode())
            assert f"line {number}\n" in recording.text()


def test_the_last_that_came_is_in_the_file_at_the_end(server: Server, tmp_path: Path) -> None:
    with recorded(tcp(server), tmp_path) as recording:
        server.accept()
        await_text(recording, "begins")
        server.say(b"x" * 500_000 + b"\nlast\n")
    assert "last" in (tmp_path / "console.txt").read_text()


def test_a_console_that_is_lost_is_recorded_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "RETRY_SECONDS", 0.05)
    problems: list[str] = []
    with recorded(tcp(server), tmp_path, problems) as recording:
        server.accept()
        server.say(b"before\n")
        await_text(recording, "before")
        server.hang_up()
        server.accept()
        server.say(b"after\n")
        text = await_text(recording, "after")
        server.hang_up()
        server.accept()
    why = f"127.0.0.1:{server.port} has closed the connection"
    assert problems == [why], "each reason once"
    assert re.search(f"before\nhil: the console is lost: {why}\nafter", text)


def test_a_console_that_is_not_there_is_told_and_recorded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "RETRY_SECONDS", 0.05)
    first = Server()
    first.listener.close()
    problems: list[str] = []
    with recorded(tcp(first), tmp_path, problems) as recording:
        (why,) = recording.problems
        assert why.startswith(f"no connection to 127.0.0.1:{first.port}: ")
        assert problems == [why]
        then = Server(first.port)
        then.accept()
        then.say(b"here\n")
        await_text(recording, "here")
        then.hang_up()
        then.listener.close()


def test_a_disk_that_is_full_ends_no_run(server: Server) -> None:
    problems: list[str] = []
    with Recording.of("grace-1", tcp(server), Path("/dev/null"), problems.append) as recording:
        recording.path = Path("/dev/full")
        server.accept()
        server.say(b"one\n")
        wait_for("the problem", lambda: problems, deadline=10)
    assert "No space left" in problems[0]


# -- RFC 2217 ----------------------------------------------------------------------------------

#: What ser2net 4.3.11 sends first, and how it sends what its port has printed.
OFFER = b"\xff\xfb\x03\xff\xfd\x03\xff\xfb\x01\xff\xfe\x01\xff\xfd\x00\xff\xfb\x00\xff\xfd,"
PRINTED = b"[ 1.0] hello \xff\xff\xfe world\r\na\r\x00b\r\n"
#: It is welcome to send eight bits, and not to be told about the port's speed (option 44).
ANSWER = b"\xff\xfd\x03\xff\xfc\x03\xff\xfd\x01\xff\xfc\x00\xff\xfd\x00\xff\xfc,"


@given(st.sets(st.integers(1, len(OFFER + PRINTED) - 1)))
def test_telnet_is_understood_in_any_pieces(cuts: set[int]) -> None:
    data, telnet = OFFER + PRINTED, Telnet()
    ends = [0, *sorted(cuts), len(data)]
    pieces = [telnet.received(data[begin:end]) for begin, end in itertools.pairwise(ends)]
    assert b"".join(text for text, _ in pieces) == b"[ 1.0] hello \xff\xfe world\r\na\r\x00b\r\n"
    assert b"".join(answer for _, answer in pieces) == ANSWER


@given(st.binary())
def test_any_text_comes_through(text: bytes) -> None:
    telnet = Telnet()
    telnet.received(bytes([IAC, 251, 0]))
    sent = text.replace(b"\xff", b"\xff\xff")
    assert telnet.received(sent)[0] == text


def test_subnegotiations_are_skipped() -> None:
    # The server notifies of the modem's state: IAC SB COM-PORT-OPTION NOTIFY-MODEMSTATE … IAC SE.
    notify = bytes([IAC, 250, 44, 107, 255, 255, 240, IAC, 240])
    assert Telnet().received(b"a" + notify + b"b")[0] == b"ab"
    # The end of one may be a byte of it.
    assert Telnet().received(bytes([IAC, 250, 44, 107, 240, 65, IAC, 240]) + b"b")[0] == b"b"


def test_what_only_looks_like_a_command_does_not_swallow_the_rest() -> None:
    """A server that does not double IAC passes on whatever a host prints."""
    telnet = Telnet()
    printed = bytes([IAC, 250]) + b"Kernel panic - not syncing" * 100
    assert telnet.received(printed + b"\r\n")[0] == printed + b"\r\n"


def test_an_offer_is_answered_once() -> None:
    telnet = Telnet()
    assert telnet.received(OFFER)[1] == ANSWER
    assert telnet.received(OFFER)[1] == b""


def test_a_console_by_rfc2217_is_recorded(server: Server, tmp_path: Path) -> None:
    with recorded(tcp(server, "rfc2217"), tmp_path) as recording:
        server.accept()
        server.say(OFFER + b"[ 1.0] boot")
        assert server.client
        assert select.select([server.client], [], [], 10)[0]
        assert server.client.recv(100) == ANSWER
        server.say(b"ed \xff\xff\r\n")
        assert await_text(recording, "booted").splitlines()[-1] == "[ 1.0] booted \ufffd"


# -- SSH ---------------------------------------------------------------------------------------


@pytest.fixture
def console_server(tmp_path: Path) -> Iterator[ConsoleSource]:
    """Yield the console behind an SSH server: what is appended to a file is printed there. As on a
    BMC, nothing else can be done by logging in."""
    (tmp_path / "uart").touch()
    show = f"ForceCommand test -t 1 && exec tail -n +1 -f {tmp_path / 'uart'}"
    with sshd(tmp_path / "sshd", show) as server:
        target = server.target
        entry = {
            "address": "127.0.0.1",
            "port": server.port,
            "user": server.user,
            "key": target.key,
            "known_hosts": target.known_hosts,
        }
        yield ConsoleEntry.model_validate({"ssh": entry}).source


def test_a_console_behind_ssh_is_recorded(console_server: ConsoleSource, tmp_path: Path) -> None:
    with recorded(console_server, tmp_path) as recording:
        assert recording.problems == []
        with (tmp_path / "uart").open("a") as uart:
            uart.write(f"[    1.000000] {'x' * 300} booted\n")
        text = await_text(recording, "booted")
        assert f"[    1.000000] {'x' * 300} booted\n" in text


def test_the_host_key_of_a_console_is_checked(tmp_path: Path) -> None:
    with sshd(tmp_path / "sshd") as server:
        known = tmp_path / "known_hosts"
        known.touch()
        entry = {"address": "127.0.0.1", "port": server.port, "user": server.user}
        entry |= {"key": str(server.key), "known_hosts": str(known)}
        source = ConsoleEntry.model_validate({"ssh": entry}).source
        with pytest.raises(LabError, match="known_hosts"), source.open():
            pass
        with recorded(source, tmp_path) as recording:
            assert "known_hosts" in recording.problems[0]


def test_a_console_server_that_is_down_is_lost(tmp_path: Path) -> None:
    with sshd(tmp_path / "sshd") as server:
        target = server.target
    entry = {"address": "127.0.0.1", "port": server.port, "key": target.key}
    source = ConsoleEntry.model_validate(
        {"ssh": {**entry, "known_hosts": target.known_hosts}}
    ).source
    with pytest.raises(ConsoleLostError, match="not reachable"), source.open():
        pass


# -- IPMI --------------------------------------------------------------------------------------


def sol(bmc: start.Bmc) -> ConsoleSource:
    entry = {"address": "127.0.0.1", "port": bmc.port, "user": USER, "password_env": "BMC_IS"}
    return ConsoleEntry.model_validate({"ipmi": entry}).source


def test_a_console_by_ipmi_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMC_IS", PASSWORD[:16])
    with start.ipmi(tmp_path / "bmc") as bmc:
        for boot in ("first", "second"):  # the BMC has one console, which is free again
            with recorded(sol(bmc), tmp_path) as recording:
                assert recording.problems == []
                with (bmc.folder / "console").open("a") as console:
                    console.write(f"[    1.000000] {boot} boot\r\n")
                text = await_text(recording, f"[    1.000000] {boot} boot\n")
        assert bmc.did == [], "nothing is typed on the console"
    assert "SOL Session" not in text


def test_a_bmc_that_refuses_its_console_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BMC_IS", "wrong-and-secret")
    with start.ipmi(tmp_path / "bmc") as bmc:
        with pytest.raises(ConsoleLostError) as caught, sol(bmc).open():
            pass
    assert "Unable to establish IPMI v2 / RMCP+ session" in str(caught.value)
    assert "wrong-and-secret" not in str(caught.value)


def test_an_error_of_a_text_does_not_show_it(tmp_path: Path) -> None:
    """The repr of such an error has the whole text, which may be a password."""

    class Broken:
        lag = 0.0

        @contextlib.contextmanager
        def open(self) -> Iterator[ConsoleStream]:
            "hunter2\udce4".encode()
            yield IdleStream()

    with recorded(Broken(), tmp_path) as recording:
        assert "UnicodeEncodeError: 'utf-8' codec" in recording.problems[0]
    assert "hunter2" not in (tmp_path / "console.txt").read_text()


class IdleStream:
    def read(self) -> bytes:
        return b""


def test_a_console_that_does_not_open_in_time_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paramiko waits without a limit for an SSH server that shows no console."""
    monkeypatch.setattr(recordings, "OPEN_SECONDS", 0.2)
    end = threading.Event()

    class Slow:
        lag = 0.0

        @contextlib.contextmanager
        def open(self) -> Iterator[ConsoleStream]:
            end.wait(20)
            yield IdleStream()

    told: list[str] = []
    with recorded(Slow(), tmp_path, told) as recording:
        assert recording.problems == told == ["it was not open after 0 s; it is tried further"]
        end.set()
    assert "hil: the console is lost: it was not open" in (tmp_path / "console.txt").read_text()


# -- a file, as a virtual host's UART ----------------------------------------------------------


def test_a_file_is_followed_from_its_end_and_through_boots(tmp_path: Path) -> None:
    uart = tmp_path / "console.log"
    uart.write_text("an earlier boot\n")
    with recorded(FileConsole(uart), tmp_path) as recording:
        with uart.open("a") as same:
            same.write("goes on\n")
        await_text(recording, "goes on")
        with uart.open("a") as same:
            same.write("its end\n")
        uart.replace(tmp_path / "console.1.log")
        uart.write_text("the next boot\n")
        text = await_text(recording, "the next boot")
    assert "an earlier boot" not in text
    assert text.splitlines()[-3:] == ["goes on", "its end", "the next boot"]


def test_the_end_of_a_file_that_is_replaced_meanwhile_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uart = tmp_path / "console.log"
    uart.write_text("")
    with FileConsole(uart).open() as stream:
        assert isinstance(stream, _FileStream)
        other = stream._other

        def replaced_now() -> IO[bytes] | None:
            with uart.open("a") as same:
                same.write("its end\n")
            uart.replace(tmp_path / "console.1.log")
            uart.write_text("the next boot\n")
            return other()

        monkeypatch.setattr(stream, "_other", replaced_now)
        assert stream.read() == b"its end\nthe next boot\n"


def test_a_file_may_come_later(tmp_path: Path) -> None:
    uart = tmp_path / "console.log"
    with recorded(FileConsole(uart), tmp_path) as recording:
        uart.write_text("the first boot\n")
        assert await_text(recording, "first").splitlines()[-1] == "the first boot"


# -- last words --------------------------------------------------------------------------------

LOST = LinkLostError("the link is lost")


def check(server: Server, folder: Path, said: str, problem: BaseException | None = LOST) -> None:
    """Check the last words of a host whose console says something, and which is lost."""
    with recorded(tcp(server), folder) as recording:
        server.accept()
        server.say(f"{PANIC} of an earlier boot\nlogin: ".encode())
        await_text(recording, "login:")
        words = LastWords("grace-1", recording)
        words.seen()
        server.say(said.encode())
        words.check(problem, silence=LOST)


def test_a_panic_on_the_console_is_the_products(server: Server, tmp_path: Path) -> None:
    with pytest.raises(HostKernelError) as caught:
        check(server, tmp_path, f"\r\n{PANIC}\r\nNOTICE:  BL31: v2.10\r\n")
    assert "the kernel of host grace-1 died: [   12.345678] Kernel panic" in caught.value.message
    assert "earlier" not in caught.value.message
    assert caught.value.__cause__ is LOST


def test_a_panic_that_comes_a_little_later_is_waited_for(server: Server, tmp_path: Path) -> None:
    """A BMC carries what a host prints with some delay, and the link is lost at once."""
    with recorded(tcp(server), tmp_path) as recording:
        server.accept()
        words = LastWords("grace-1", recording)
        words.seen()

        def speak() -> None:
            server.say(f"{PANIC}\n".encode())
            threading.Timer(0.3, server.say, [b"[   12.400000] Call trace:\n"]).start()

        threading.Timer(0.3, speak).start()
        with pytest.raises(HostKernelError, match="Call trace"):
            words.check(LOST)


@pytest.mark.parametrize(
    "said",
    [
        "Unhandled Exception in EL3.",
        "PANIC in EL3 at x30 = 0x0000000004023238",
        "Synchronous Exception at 0x0000000081310C90",
        "ASSERT [ArmCpuDxe] DefaultExceptionHandler.c(345): ((BOOLEAN)(0==1))",
    ],
)
def test_a_failure_of_the_firmware_is_the_labs(server: Server, tmp_path: Path, said: str) -> None:
    with pytest.raises(HostFirmwareError, match="the firmware of host grace-1 failed"):
        check(server, tmp_path, f"\r\n{said}\r\n", None)


@pytest.mark.parametrize(
    "said",
    [
        "NOTICE:  BL1: v2.12.0(release):v2.12",
        "UEFI firmware (version 202311-1.2 built at 16:28:50 on Sep 12 2026)",
        "[    0.000000] Booting Linux on physical CPU 0x0000000000 [0x410fd4f0]",
    ],
)
def test_a_reset_without_a_word_is_told_of_a_silent_host(
    server: Server, tmp_path: Path, said: str
) -> None:
    with pytest.raises(HostResetError, match="was reset, and did not say why"):
        check(server, tmp_path, f"\r\n{said}\r\n")


@pytest.mark.parametrize("problem", [None, LabError("no QEMU there")])
def test_a_boot_does_not_explain_what_is_no_silence(
    server: Server, tmp_path: Path, problem: LabError | None
) -> None:
    check(server, tmp_path, "\r\nNOTICE:  BL31: v2.10\r\n", problem)


@pytest.mark.parametrize(
    "said", ["PANIC in EL3 at x30 = 0x0000000004023238", "NOTICE:  BL31: v2.10"]
)
def test_a_failed_test_stays_the_products_when_its_host_is_reset_after_it(
    server: Server, tmp_path: Path, said: str
) -> None:
    check(server, tmp_path, f"\r\n{said}\r\n", AssertionError("an event is lost"))


def test_the_latest_lines_are_shown(server: Server, tmp_path: Path) -> None:
    with recorded(tcp(server), tmp_path) as recording:
        server.accept()
        words = LastWords("grace-1", recording)
        words.seen()
        server.say(b"".join(f"line {number}\n".encode() for number in range(40)))
        await_text(recording, "line 39")
        assert words.latest().splitlines() == [f"  | line {number}" for number in range(25, 40)]
    assert LastWords("grace-1", None).latest() == ""


def test_nothing_said_is_no_last_word(server: Server, tmp_path: Path) -> None:
    check(server, tmp_path, "\r\nall is well\r\n")


# -- in a run ----------------------------------------------------------------------------------

SUITE = "def test_enters_the_host(host): pass\n"
LAB = """
lab: mine
hosts:
  - name: grace-1
    address: 127.0.0.1
    port: {port}
    user: {user}
    key: {key}
    known_hosts: {known}
    console: {{tcp: {{address: 127.0.0.1, port: {console}}}}}
"""


def run_with_console(folder: Path, port: int) -> Path:
    """Run a suite whose host has a console at a TCP port, and return the run's folder. The host is
    not usable: this machine is no Grace."""
    with sshd(folder / "sshd") as host:
        target = host.target
        lab = LAB.format(
            port=host.port,
            user=host.user,
            key=target.key,
            known=target.known_hosts,
            console=port,
        )
        (folder / "lab.yaml").write_text(lab)
        write_suite(folder, SUITE)
        ended = run_suite(folder, "--lab=lab.yaml", HIL_CACHE=str(folder / "cache"))
        assert ended.returncode == 11, ended.stdout + ended.stderr
    (run,) = (folder / "out").iterdir()
    return run


def test_a_run_records_the_consoles_of_its_hosts(server: Server, tmp_path: Path) -> None:
    def speak() -> None:
        server.accept()
        server.say(b"[ 1.0] up\r\n")

    speaking = threading.Thread(target=speak)
    speaking.start()
    run = run_with_console(tmp_path, server.port)
    speaking.join()
    lines = list(parse((run / "logs" / "grace-1.console.txt").read_text()))
    assert [text for _, text in lines] == [
        "hil: the recording begins",
        "[ 1.0] up",
        "hil: the recording ends",
    ]
    assert all(when for when, _ in lines)


def test_a_run_tells_that_a_console_is_not_recorded(tmp_path: Path) -> None:
    run = run_with_console(tmp_path, 1)
    notes = json.loads((run / "result.json").read_text())["notes"]
    assert any("console of host grace-1: no connection to 127.0.0.1:1" in str(one) for one in notes)


def test_the_timeline_has_a_lane_of_the_console(server: Server, tmp_path: Path) -> None:
    with recorded(tcp(server), tmp_path) as recording:
        server.accept()
        server.say(f"before\n{PANIC}\n".encode())
        await_text(recording, PANIC)
        picture = witnesses._Picture(witnesses.Offset(100.0, 0.0), time.time() + 95.0)
        marks, total = witnesses._host_console(recording, picture)
        assert [(mark.text, mark.look) for mark in marks[1:]] == [
            ("before", Look.CONTEXT),
            (PANIC, Look.LOST),
        ]
        assert marks[-1].time == pytest.approx(time.time() + 100.0, abs=5.0)
        assert total == "1 of a crash"
        later = witnesses._Picture(witnesses.Offset(0.0, 0.0), time.time() + 60.0)
        assert witnesses._host_console(recording, later)[0] == []


def test_no_thread_is_left() -> None:
    wait_for(
        "the end of all recordings",
        lambda: not [one for one in threading.enumerate() if one.name.startswith("console ")],
        deadline=10,
    )
