"""A host that is lost is brought back step by step, as far as the inventory allows, and each step
is told with its time. The host is a real SSH server, which its power control starts."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.artifacts.store import Store
from harness.console.file import FileConsole
from harness.console.recording import Recording
from harness.console.stamps import parse
from harness.errors import LabError
from harness.host import connection
from harness.host.connection import Connection, LinkLostError
from harness.host.host import HostDescription
from harness.host.last_words import HostKernelError
from harness.host.power import HostPower, PowerState, PowerUnsupportedError
from harness.host.target import Target
from harness.kernel_image import KernelImage
from harness.lab import kexec, pool, recovery
from harness.lab.inventory import HostEntry, Inventory, RecoveryEntry
from harness.lab.pool import HostGivenUpError, Hosts
from harness.lab.recovery import HostLostError, RecoveryLog, recover
from harness.lab.software import HostKernel, Software
from harness.power.command import CommandPower
from harness.progress import Progress
from harness.report.blame import Blame, blame
from harness.waiting import wait_for
from tests.sshd import Sshd, sshd

QUIET = Progress(enabled=False)
SOON = RecoveryEntry(wait=1, dump=1, reboot=20)


@dataclass
class Machine:
    """A host: an SSH server, which `boot`, a command of the shell, starts. `did` has what its power
    control was told."""

    folder: Path
    server: Sshd
    did_file: Path = field(init=False)

    def __post_init__(self) -> None:
        self.did_file = self.folder / "did"

    @property
    def target(self) -> Target:
        return self.server.target

    @property
    def boot(self) -> str:
        config = shlex.quote(str(self.server.folder / "sshd_config"))
        return (
            "unshare --mount --pid --fork --kill-child=KILL --mount-proc sh -c "
            f"'mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec /usr/sbin/sshd -D -f "
            f"{config}' </dev/null >/dev/null 2>&1 & echo $! >>{self.folder}/pids"
        )

    def does(self, what: str, then: str = "true") -> str:
        """Return the command of a power control that is told something, and then does it."""
        return f"echo {what} >>{self.did_file}; {then}"

    @property
    def did(self) -> list[str]:
        return self.did_file.read_text().split() if self.did_file.exists() else []

    def power(self, **changed: str | None) -> CommandPower:
        """Return the commands of a power control: the host is on, and a restart boots it."""
        commands: dict[str, str | None] = {
            "on": self.does("on", self.boot),
            "off": self.does("off"),
            "cycle": self.does("cycle", self.boot),
            "nmi": self.does("nmi"),
            "status": "echo on",
        }
        return CommandPower.model_validate({**commands, **changed})

    def described(self, power: CommandPower | None) -> HostDescription:
        described = HostDescription("grace-1", self.target, cast(Any, None))
        return replace(described, power=power.control("grace-1") if power else None)

    def start(self) -> None:
        os.system(self.boot)
        wait_for("the host to answer", self.answers, deadline=20)

    def stop(self) -> None:
        pids = self.folder / "pids"
        for pid in pids.read_text().split() if pids.exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        wait_for("the host to be gone", lambda: not self.answers(), deadline=20)
        pids.unlink(missing_ok=True)

    def answers(self) -> bool:
        with contextlib.suppress(LabError), Connection.to(self.target) as link:
            return link.run("true").status == 0
        return False


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Yield a host that is lost: its server does not run."""
    monkeypatch.setattr(recovery, "_ASK_SECONDS", 0.1)
    monkeypatch.setattr(connection, "RECONNECT_SECONDS", 0.2)
    with sshd(tmp_path / "sshd") as server:
        pass
    lost = Machine(tmp_path, server)
    yield lost
    lost.stop()


def climb(
    machine: Machine,
    power: CommandPower | None,
    patience: RecoveryEntry = SOON,
    *,
    ours: bool = True,
) -> list[str]:
    """Recover a host, and return what was told."""
    path = machine.folder / "recovery.txt"
    try:
        recover(machine.described(power), patience, RecoveryLog("grace-1", QUIET, path), ours=ours)
    finally:
        lines = list(parse(path.read_text())) if path.exists() else []
        machine_told = [text for when, text in lines if when is not None]
        assert len(machine_told) == len(lines), "each step has its time"
    return machine_told


def test_a_host_that_answers_is_left_alone(machine: Machine) -> None:
    machine.start()
    assert climb(machine, machine.power()) == []
    assert machine.did == []


def test_a_lost_host_is_interrupted_and_then_restarted(machine: Machine) -> None:
    told = climb(machine, machine.power())
    assert machine.did == ["nmi", "cycle"]
    assert machine.answers()
    steps = [
        "does not answer: ",
        "is on, says its power control",
        "did not answer within 1 s: ",
        "is not well: send it an NMI",
        "has got an NMI",
        "did not answer within 1 s: ",
        "is not well: restart it",
        "is restarted by its power control",
        "answers, after ",
    ]
    assert all(one.startswith(step) for one, step in zip(told, steps, strict=True)), told


def test_a_host_that_comes_back_with_its_dump_is_not_restarted(machine: Machine) -> None:
    climb(machine, machine.power(nmi=machine.does("nmi", machine.boot)), replace_(dump=20))
    assert machine.did == ["nmi"]


def replace_(**changed: Any) -> RecoveryEntry:
    return SOON.model_copy(update=changed)


def test_a_host_that_comes_back_by_itself_is_only_waited_for(machine: Machine) -> None:
    booting = threading.Timer(0.5, os.system, [machine.boot])
    booting.start()
    climb(machine, None, replace_(wait=20))
    booting.join()
    assert machine.did == []


def lost(machine: Machine, power: CommandPower | None, **options: Any) -> HostLostError:
    with pytest.raises(HostLostError) as caught:
        climb(machine, power, **options)
    assert caught.value.fix
    assert "not reachable over SSH" in caught.value.message
    return caught.value


def test_a_host_that_another_run_may_have_is_neither_interrupted_nor_restarted(
    machine: Machine,
) -> None:
    lost(machine, machine.power(), ours=False)
    assert machine.did == []


def test_a_host_that_is_off_is_turned_on_whoever_had_it(machine: Machine) -> None:
    state = machine.folder / "on"
    power = machine.power(
        on=machine.does("on", f"touch {state}; {machine.boot}"),
        status=f"test -e {state} && echo on || echo off",
    )
    climb(machine, power, ours=False)
    assert machine.did == ["on"]


def test_what_the_inventory_forbids_is_not_done(machine: Machine) -> None:
    lost(machine, machine.power(), patience=replace_(restart=False))
    assert machine.did == ["nmi"]
    lost(machine, machine.power(), patience=replace_(nmi=False, restart=False))
    assert machine.did == ["nmi"]
    climb(machine, machine.power(), replace_(nmi=False))
    assert machine.did == ["nmi", "cycle"]


def test_a_power_control_without_nmi_restarts(machine: Machine) -> None:
    told = climb(machine, machine.power(nmi=None))
    assert machine.did == ["cycle"]
    assert any(one.startswith("could not send it an NMI: no command") for one in told)


def test_a_power_control_that_fails_is_told(machine: Machine) -> None:
    broken = "echo no such relay >&2; exit 1"
    problem = lost(machine, machine.power(status=broken, nmi=broken, cycle=broken))
    assert "all was done that the inventory allows" in problem.message
    told = (machine.folder / "recovery.txt").read_text()
    assert told.count("no such relay") == 3


def test_the_steps_stand_on_the_recorded_console(machine: Machine) -> None:
    uart, path = machine.folder / "uart", machine.folder / "console.txt"
    power = machine.power(nmi=machine.does("nmi", f"echo Kernel panic >>{uart}"))
    with Recording.of("grace-1", FileConsole(uart), path, lambda _: None) as recording:
        log = RecoveryLog("grace-1", QUIET, None, recording)
        recover(machine.described(power), SOON, log, ours=True)
        text = recording.text()
    order = ["hil: is not well: send it an NMI", "Kernel panic", "hil: is restarted"]
    assert sorted(order, key=text.index) == order


# -- in a run ----------------------------------------------------------------------------------


def entry(machine: Machine, power: CommandPower | None) -> HostEntry:
    target = machine.target
    described = {"name": "grace-1", "address": target.address, "port": target.port}
    described |= {"key": target.key, "known_hosts": target.known_hosts, "recovery": SOON}
    return HostEntry.model_validate(
        {**described, "power": {"command": power.model_dump()} if power else None}
    )


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an open host be a connection only: this machine is no Grace."""

    @contextmanager
    def opened(described: HostDescription, *_: object, **__: object) -> Iterator[object]:
        with Connection.to(described.target) as link:
            session = SimpleNamespace(processes=lambda: link.run("true"))
            yield SimpleNamespace(name=described.name, session=session, description=described)

    monkeypatch.setattr(pool, "opened", opened)
    monkeypatch.setattr(pool, "Fleet", lambda *_, **__: object())


@pytest.mark.usefixtures("opening")
def test_a_run_goes_on_with_a_host_that_was_lost(machine: Machine) -> None:
    lab = Inventory(lab="mine", hosts=(entry(machine, machine.power()),))
    hosts = Hosts(lab, Software(), Store(machine.folder / "cache"), QUIET, logs=machine.folder)
    machine.start()
    hosts.open("grace-1")
    machine.stop()
    hosts.check()
    assert hosts.fleet is None, "the host is lost"
    hosts.open("grace-1")
    assert machine.did == ["nmi", "cycle"]
    hosts.close()
    assert "restarted" in (machine.folder / "grace-1.recovery.txt").read_text()


def test_a_run_knows_the_recorded_console_of_its_host(machine: Machine) -> None:
    machine.start()
    with socket.create_server(("127.0.0.1", 0)) as port:
        console = {"tcp": {"address": "127.0.0.1", "port": port.getsockname()[1]}}
        described = entry(machine, None).model_dump(exclude_unset=True)
        lab = Inventory(
            lab="mine", hosts=(HostEntry.model_validate({**described, "console": console}),)
        )
        hosts = Hosts(lab, Software(), Store(machine.folder / "cache"), QUIET, logs=machine.folder)
        speaking = threading.Thread(target=lambda: port.accept()[0].sendall(b"[ 1.0] up\n"))
        speaking.start()
        found = hosts.describe("grace-1").console
        speaking.join()
        assert found
        wait_for("what it says", lambda: "[ 1.0] up\n" in found.text(), deadline=10)
        hosts.close()


@pytest.mark.usefixtures("opening")
def test_a_run_gives_up_a_host_that_nothing_brings_back(machine: Machine) -> None:
    lab = Inventory(lab="mine", hosts=(entry(machine, machine.power(cycle="true")),))
    lab = lab.model_copy(
        update={"hosts": (lab.hosts[0].model_copy(update={"recovery": replace_(reboot=1)}),)}
    )
    hosts = Hosts(lab, Software(), Store(machine.folder / "cache"), QUIET)
    machine.start()
    hosts.open("grace-1")
    machine.stop()
    hosts.check()
    with pytest.raises(HostLostError, match="all was done"):
        hosts.open("grace-1")
    with pytest.raises(HostGivenUpError):
        hosts.open("grace-1")


@pytest.mark.usefixtures("opening")
def test_a_host_that_a_run_never_had_is_not_restarted(machine: Machine) -> None:
    lab = Inventory(lab="mine", hosts=(entry(machine, machine.power()),))
    hosts = Hosts(lab, Software(), Store(machine.folder / "cache"), QUIET)
    with pytest.raises(HostLostError):
        hosts.open("grace-1")
    assert machine.did == []


@pytest.mark.usefixtures("opening")
def test_a_host_that_a_run_has_given_back_may_be_somebody_elses(machine: Machine) -> None:
    """Who may reboot it just now."""
    one = entry(machine, machine.power())
    other = one.model_copy(update={"name": "grace-2"})
    lab = Inventory(lab="mine", hosts=(one, other))
    hosts = Hosts(lab, Software(), Store(machine.folder / "cache"), QUIET)
    machine.start()
    hosts.open("grace-1")
    hosts.open("grace-2")
    machine.stop()
    hosts.check()
    with pytest.raises(HostLostError):
        hosts.open("grace-1")
    assert machine.did == []
    hosts.open("grace-2")
    assert machine.did == ["nmi", "cycle"]
    hosts.close()


@pytest.mark.usefixtures("opening")
def test_a_host_without_power_control_fails_as_soon_as_ever(machine: Machine) -> None:
    unwaited = entry(machine, None).model_copy(update={"recovery": RecoveryEntry()})
    lab = Inventory(lab="mine", hosts=(unwaited,))
    hosts = Hosts(lab, Software(), Store(machine.folder / "cache"), QUIET, logs=machine.folder)
    with pytest.raises(LabError, match="not reachable over SSH"):
        hosts.open("grace-1")
    assert not (machine.folder / "grace-1.recovery.txt").exists()


# -- after a kernel under test -----------------------------------------------------------------


class Rebooting:
    """A link to a host that hangs in a kernel under test until it is restarted from outside."""

    def __init__(self) -> None:
        self.restarted = False

    def run(self, command: str) -> SimpleNamespace:
        if not self.restarted:
            raise LinkLostError("the link is lost")
        return SimpleNamespace(text="another-boot\n7.2.1\nconsole=ttyAMA0\n")


@dataclass
class Switch:
    """A power control that restarts it."""

    link: Rebooting
    did: list[str] = field(default_factory=list)

    def state(self) -> PowerState:
        return PowerState.ON

    def on(self) -> None:
        self.did.append("on")

    def off(self) -> None:
        self.did.append("off")

    def cycle(self) -> None:
        self.did.append("cycle")
        self.link.restarted = True

    def nmi(self) -> None:
        raise PowerUnsupportedError("no NMI")


def journey(link: Rebooting, power: HostPower | None) -> kexec._Journey:
    """Return the journey of a host that is away."""
    return kexec._Journey(
        HostDescription("grace-1", cast(Any, None), cast(Any, None), power=power),
        HostKernel(KernelImage(Path("Image"), "digest", "7.3.0-test")),
        cast(Any, link),
        kexec._Boot("a-boot", "7.2.1", ""),
        cast(Any, None),
        QUIET,
        away=True,
    )


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POWERED_SECONDS", "REBOOT_SECONDS"):
        monkeypatch.setattr(kexec, name, 0.3)
    monkeypatch.setattr(kexec, "_ASK_SECONDS", 0.05)


@pytest.mark.usefixtures("_soon")
def test_a_host_that_hangs_in_a_kernel_under_test_is_restarted() -> None:
    link = Rebooting()
    power = Switch(link)
    away = journey(link, power)
    away.interrupt()
    away.return_home()
    assert power.did == ["cycle"]


@pytest.mark.usefixtures("_soon")
def test_without_power_control_somebody_has_to() -> None:
    with pytest.raises(LabError, match="to come back with kernel") as caught:
        journey(Rebooting(), None).return_home()
    assert "by its BMC" in str(caught.value.fix)


@pytest.mark.parametrize("powered", [False, True])
def test_a_kernel_that_does_not_come_up_is_to_blame_if_the_installed_one_does(
    monkeypatch: pytest.MonkeyPatch, powered: bool
) -> None:
    def not_up(*_: object) -> None:
        raise kexec._NotUpError("waited 300 s for host grace-1 to answer")

    def leave(away: kexec._Journey) -> None:
        away.away = True

    boots = iter(["a-boot"])
    link = SimpleNamespace(
        run=lambda _: SimpleNamespace(text=f"{next(boots, 'another')}\n7.2.1\nquiet\n")
    )
    for name, instead in (
        ("Connection", SimpleNamespace(to=lambda _: contextlib.nullcontext(link))),
        ("_session", lambda *_: contextlib.nullcontext()),
    ):
        monkeypatch.setattr(kexec, name, instead)
    for step, does in (("prepare", lambda _: None), ("leave", leave), ("arrive", not_up)):
        monkeypatch.setattr(kexec._Journey, step, does)
    power = Switch(Rebooting()) if powered else None
    described = HostDescription("grace-1", cast(Any, None), cast(Any, None), power=power)
    kernel = HostKernel(KernelImage(Path("Image"), "digest", "7.3.0-test"))
    with pytest.raises(LabError if not powered else HostKernelError) as caught:
        with kexec.booted(described, kernel, QUIET):
            pass
    assert blame(caught.value) is (Blame.PRODUCT if powered else Blame.LAB)
    assert "waited 300 s" in str(caught.value)
