"""A host leaves its kernel for another one, or says why not, and nothing of it stays there.

This machine stands for the host: its agent, its shell and its files are real. `kexec` is a script
that writes down how it was called.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import LabError
from harness.host import other_kernel
from harness.host import session as sessions
from harness.host.connection import Connection, LinkLostError
from harness.host.host import Host as OpenHost
from harness.host.host import HostDescription
from harness.host.last_words import LastWords
from harness.host.session import ReservedError, Session
from harness.kernel_image import KernelImage
from harness.lab import kexec, reservation
from harness.lab.kexec import _Boot, _Journey
from harness.lab.reservation import waited
from harness.lab.software import HostKernel
from harness.progress import Progress
from harness.waiting import wait_for
from tests.local_host import LocalHost
from tests.test_software import archive, image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the kernel's log")

QUIET = Progress(enabled=False)
KEXEC = """\
#!/bin/sh
echo "$*" >>{log}
[ "$1" != -e ] || {leaves}
"""


@dataclass
class Host:
    """What stands for a host."""

    folder: Path
    link: LocalHost
    kernel: HostKernel

    def kexec(self, leaves: str) -> None:
        """Have the host leave its kernel by this command."""
        program = self.folder / "bin" / "kexec"
        program.write_text(KEXEC.format(log=self.folder / "log", leaves=leaves))
        program.chmod(0o755)

    def calls(self) -> list[str]:
        log = self.folder / "log"
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []

    @contextlib.contextmanager
    def journey(self) -> Iterator[_Journey]:
        described = HostDescription("grace-1", cast(Any, None), cast(Any, None))
        session = Session.start(self.link)
        try:
            yield _Journey(
                *(described, self.kernel, self.link, _Boot.of(self.link), session, QUIET)
            )
        finally:
            with contextlib.suppress(LabError):
                session.end()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    modules = tmp_path / "modules"
    monkeypatch.setattr(sessions, "ROOT", str(tmp_path / "hil"))
    monkeypatch.setattr(other_kernel, "MODULES", str(modules))
    monkeypatch.setattr(kexec, "MODULES", str(modules))
    monkeypatch.setattr(kexec, "_ASK_SECONDS", 0.05)
    monkeypatch.setattr(kexec, "_WATCHDOG", str(tmp_path / "watchdog"))
    monkeypatch.setattr(kexec, "_SYSTEMD", str(tmp_path / "systemd"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "depmod").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    files = "lib/modules/7.3.4-mine/a.ko", "lib/modules/7.3.4-mine/kernel/b.ko"
    kernel = HostKernel(KernelImage.read(image(tmp_path)), modules=archive(tmp_path, *files))
    found = Host(tmp_path, LocalHost(), kernel)
    found.kexec("exit 0")
    return found


def left(host: Host) -> list[str]:
    """Return the modules that are on the host."""
    return sorted(path.name for path in host.folder.glob("modules/**/*.ko"))


def leaving(journey: _Journey) -> None:
    """Have the host leave, up to where its shutdown ends the agent."""
    journey.prepare()
    journey.leave()
    assert journey.session.wait("kexec", 5) == 0


def test_what_is_about_to_boot_stays_when_the_shutdown_ends_the_agent(host: Host) -> None:
    with host.journey() as journey:
        leaving(journey)
        agent = int(Path(journey.session.folder, "agent.pid").read_text())
        os.kill(agent, signal.SIGTERM)
        wait_for("the agent's end", lambda: not Path(f"/proc/{agent}").exists(), deadline=5)
    assert host.calls() == ["--kexec-syscall-auto", "-e"]
    assert left(host) == ["a.ko", "b.ko"]


def test_a_host_that_does_not_leave_has_nothing_of_it_afterwards(host: Host) -> None:
    with host.journey() as journey:
        journey.prepare()
        assert left(host) == ["a.ko", "b.ko"]
    assert host.calls() == ["--kexec-syscall-auto", "-u"]
    assert left(host) == []


@pytest.mark.parametrize("systemd", [False, True])
def test_a_host_that_refuses_to_leave_is_told_and_given_back(host: Host, systemd: bool) -> None:
    host.kexec("{ echo Operation not permitted >&2; exit 1; }")
    if systemd:
        (host.folder / "systemd").mkdir()
        systemctl = host.folder / "bin" / "systemctl"
        systemctl.write_text(f"#!/bin/sh\n[ $1 = kexec ] && exec {host.folder}/bin/kexec -e\n")
        systemctl.chmod(0o755)
    (host.folder / "watchdog").write_text("")
    with host.journey() as journey:
        journey.prepare()
        journey.leave()
        with pytest.raises(LabError) as caught:
            journey.arrive(LastWords("grace-1", None))
        assert caught.value.message == (
            "host grace-1 refuses to leave its kernel for 7.3.4-mine: Operation not permitted"
        )
        assert not journey.away, "nothing reboots it"
        assert (host.folder / "watchdog").read_text() == "V", "nothing resets it"
        Session.start(host.link).end()
    assert host.calls() == ["--kexec-syscall-auto", "-e", "-u"]
    assert left(host) == []


def test_a_host_whose_shutdown_hangs_is_no_failure_of_the_kernel(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kexec, "KEXEC_SECONDS", 0.3)
    with host.journey() as journey:
        leaving(journey)
        with pytest.raises(LabError, match="grace-1 does not leave its installed kernel") as caught:
            journey.arrive(LastWords("grace-1", None))
    assert not isinstance(caught.value, kexec._NotUpError), "it is not sent an NMI"
    assert journey.away, "it is rebooted"


def test_modules_that_a_killed_run_has_left_are_replaced(host: Host) -> None:
    folder = host.folder / "modules" / "7.3.4-mine"
    folder.mkdir(parents=True)
    (folder / "old.ko").write_text("")
    with host.journey() as journey, pytest.raises(LabError, match="is there already"):
        journey.prepare()
    assert left(host) == ["old.ko"], "they are the host's own"
    (folder / other_kernel.BROUGHT).write_text("")
    with host.journey() as journey:
        journey.prepare()
        assert left(host) == ["a.ko", "b.ko"]


def test_modules_of_a_kernel_that_died_go_unless_somebody_has_the_host(host: Host) -> None:
    """Who may have brought the same release."""
    folder = host.folder / "modules" / "7.3.4-mine"
    folder.mkdir(parents=True)
    for name in (other_kernel.BROUGHT, "a.ko"):
        (folder / name).write_text("")
    with host.journey() as journey:
        journey._remove_modules()
        assert left(host) == ["a.ko"]
    journey._remove_modules()
    assert not folder.exists()


@pytest.mark.parametrize("brought", [False, True])
def test_modules_of_a_kernel_go_before_the_host_is_rebooted(host: Host, brought: bool) -> None:
    """By the agent, in whichever session it runs that kernel. Others are the host's own."""
    folder = host.folder / "modules" / os.uname().release
    folder.mkdir(parents=True)
    (folder / "a.ko").write_text("")
    if brought:
        (folder / other_kernel.BROUGHT).write_text("")
    undos: list[tuple[str, str]] = []
    opened: Any = SimpleNamespace(
        connection=SimpleNamespace(run=lambda _: SimpleNamespace(text="quiet hil.kexec=1")),
        session=SimpleNamespace(on_end=lambda *undo: undos.append(undo)),
        description=SimpleNamespace(kexec_mark="hil.kexec=1"),
    )
    OpenHost._check_boot(opened)
    (_, reboots), (_, removes) = undos
    assert reboots == other_kernel.REBOOT
    host.link.run(removes)
    assert left(host) == ([] if brought else ["a.ko"])


def test_a_kernel_that_was_built_anew_meanwhile_is_not_booted(host: Host) -> None:
    path = host.kernel.image.path
    path.write_bytes(path.read_bytes() + b"new")
    with host.journey() as journey, pytest.raises(LabError, match="has changed since this run"):
        journey.prepare()
    assert host.calls() == []


def test_a_run_that_never_had_the_host_does_nothing_to_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run's modules stay, and what it runs is not taken for the installed kernel."""
    folder = host.folder / "modules" / "7.3.4-mine"
    folder.mkdir(parents=True)
    for name in (other_kernel.BROUGHT, "theirs.ko"):
        (folder / name).write_text("")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Connection, "to", lambda _: contextlib.nullcontext(host.link))
    monkeypatch.setattr(kexec, "waited", interrupted)
    described = HostDescription("grace-1", cast(Any, None), cast(Any, None))
    with pytest.raises(KeyboardInterrupt), kexec.booted(described, host.kernel, QUIET):
        pass
    assert left(host) == ["theirs.ko"]


# -- waiting for a host that is rebooted ---------------------------------------------------------


def coming(*ends: Exception | None) -> Callable[[], None]:
    """Return what ends so when it is called, the last one for ever."""
    left = list(ends)

    def take() -> None:
        end = left.pop(0) if len(left) > 1 else left[0]
        if end:
            raise end

    return take


def test_who_waits_for_a_host_also_waits_for_its_reboot() -> None:
    """After the run that has brought it to another kernel."""
    silent = LinkLostError("no route")
    take = coming(ReservedError("in use", by="another"), silent, silent, None)
    waited(take, QUIET, 5, 0.01)


def test_a_host_that_never_comes_back_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation, "REBOOT_SECONDS", 0.1)
    silent = LinkLostError("no route")
    with pytest.raises(LinkLostError):
        waited(coming(silent), QUIET, 5, 0.01)
    with pytest.raises(LinkLostError):
        waited(coming(ReservedError("in use", by="another"), silent), QUIET, 5, 0.01)
