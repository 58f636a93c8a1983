"""What breaks down while a test runs is the product's failure, unless the host's memory or our own
boundary is to blame. The host and its guests are imitated: real ones break in the lab's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import HilError, LabError
from harness.guest.console import GuestCrashedError, Output
from harness.guest.death import BoundaryDiedError, OutOfMemoryError, QemuDiedError
from harness.guest.description import BoundarySpec, GuestSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest
from harness.guest.watch import GuestKernelError, Watch
from harness.host.connection import LinkLostError
from harness.host.host import Host
from harness.host.last_words import HostKernelError
from harness.progress import Progress
from harness.report.blame import Blame, blame

WARNING = "WARNING: drivers/iommu/iommufd/main.c:1 at iommufd_fops_release+0x1/0x2"
OOM = "[  9.0] Out of memory: Killed process 312 (qemu-system-aar) total-vm:1kB"
PANIC = "[   12.0] Kernel panic - not syncing: LKDTM"


@dataclass
class FakeConsole:
    """A guest's console; it is closed after a QEMU that died."""

    said: str = ""
    closed: bool = False
    crash: GuestCrashedError | None = None

    def is_closed(self) -> bool:
        return self.closed


@dataclass
class FakeGuest:
    boundary: bool = False
    console: FakeConsole = field(default_factory=FakeConsole)
    name: str = "guest0"

    @property
    def spec(self) -> GuestSpec:
        return GuestSpec(boundary=BoundarySpec("a.package") if self.boundary else None)

    @property
    def identity(self) -> Any:
        files = SimpleNamespace(qemu="/usr/bin/qemu-system-aarch64")
        return SimpleNamespace(files=files, name=self.name, spec=self.spec)

    def run(self, command: str, **_: object) -> Output:
        if self.console.crash:
            raise self.console.crash
        if self.console.closed:
            raise LabError("the guest's console closed")
        return Output(command, 0, self.console.said.encode())


class FakeHost:
    """A host: what its agent, its kernel and its console say."""

    name = "grace"
    files = None

    def __init__(self) -> None:
        self.session = self
        self.connection = self
        self.folder = "/run/hil/1"
        self.ended: set[str] = set()
        self.reports: list[tuple[float, str]] = []
        self.states: dict[str, int | None] = {"guest0": None}
        self.log = ""
        self.printed: list[str] | None = None
        self.lost = False
        self.cut = False

    # As a session.

    def kernel_reports(self) -> list[tuple[float, str]]:
        if self.lost:
            raise LabError("the link is lost")
        reports, self.reports = self.reports, []
        return reports

    def processes(self) -> dict[str, int | None]:
        return self.states

    def wait(self, name: str, seconds: float) -> int | None:
        return -6

    def pid(self, name: str) -> int:
        return 312

    def read_file(self, path: str, *, offset: int) -> bytes:
        if path.endswith("trace.log") or self.cut:
            raise LabError("no such file")
        return b"Bail out!"

    # As a connection: the session's folder has no core.

    target = SimpleNamespace(known_as="grace")

    def run(self, command: str, **_: object) -> Output:
        if self.cut:
            raise LabError("the link is lost")
        return Output(command, 0, (self.log if command == "dmesg" else "").encode())

    # As a host, and as its console.

    def kernel_log(self, after: float = 0) -> str:
        return self.log

    @property
    def console(self) -> FakeHost | None:
        return None if self.printed is None else self

    def text(self) -> str:
        return self.printed[-1] if self.printed else ""

    def last_boot(self) -> str:
        return self.printed[-2] if self.printed and len(self.printed) > 1 else ""


@pytest.fixture
def there() -> FakeHost:
    return FakeHost()


def check(
    there: FakeHost, guest: FakeGuest, problem: HilError | None = None, expected: str = "nothing"
) -> None:
    watch = Watch(cast(Host, there))
    with watch.expecting([expected]):
        watch.check([cast(Guest, guest)], problem)


def test_nothing_happened(there: FakeHost) -> None:
    check(there, FakeGuest(), LabError("a test of its own failed"))


@pytest.mark.parametrize(
    ("boundary", "status", "says"),
    [
        (False, -6, r"signal 6 \(SIGABRT\)"),
        (True, 134, r"signal 6 \(SIGABRT\)"),
        (False, -40, "signal 40;"),
        (True, 1, "status 1;"),
        (False, 1, "status 1;"),
    ],
)
def test_a_qemu_that_ended_is_the_products(
    there: FakeHost, boundary: bool, status: int, says: str
) -> None:
    there.states["guest0"] = status
    with pytest.raises(QemuDiedError, match=rf"{says}(.|\n)*Bail out!(.|\n)*no such file"):
        check(there, FakeGuest(boundary))


def test_a_death_is_told_although_the_link_is_lost_then(there: FakeHost) -> None:
    there.states["guest0"], there.cut = -6, True
    with pytest.raises(QemuDiedError, match=r"SIGABRT(.|\n)*no backtrace: the link is lost"):
        check(there, FakeGuest())


def test_a_qemu_that_leaves_its_core_is_waited_for(there: FakeHost) -> None:
    problem = LabError("the guest's console closed")
    with pytest.raises(QemuDiedError) as died:
        check(there, FakeGuest(console=FakeConsole(closed=True)), problem)
    assert died.value.__cause__ is problem


def test_a_qemu_that_the_test_ended_is_nobodys(there: FakeHost) -> None:
    there.states["guest0"] = -9
    there.ended.add("guest0")
    check(there, FakeGuest(), LabError("closed"))


def test_a_guest_may_power_itself_off(there: FakeHost) -> None:
    there.states["guest0"] = 0
    check(there, FakeGuest())
    with pytest.raises(QemuDiedError, match="status 0"):
        check(there, FakeGuest(), LabError("closed"))


def test_a_host_without_memory_is_the_labs(there: FakeHost) -> None:
    there.states["guest0"], there.log = -9, OOM
    with pytest.raises(OutOfMemoryError, match="Killed process 312"):
        check(there, FakeGuest())


@pytest.mark.parametrize(("boundary", "status"), [(False, -11), (True, 139), (True, 1)])
def test_a_kill_for_memory_that_the_log_still_has_explains_no_other_death(
    there: FakeHost, boundary: bool, status: int
) -> None:
    """The kernel kills by SIGKILL. Its log goes back to the boot, and numbers are used again."""
    there.states["guest0"], there.log = status, OOM
    with pytest.raises(QemuDiedError):
        check(there, FakeGuest(boundary))


def test_another_process_may_be_killed_for_its_memory(there: FakeHost) -> None:
    there.states["guest0"], there.log = -9, OOM.replace("312", "7")
    with pytest.raises(QemuDiedError, match="SIGKILL"):
        check(there, FakeGuest())


def test_a_boundary_that_ended_is_ours(there: FakeHost) -> None:
    there.states["guest0"] = -9
    with pytest.raises(BoundaryDiedError, match="SIGKILL") as died:
        check(there, FakeGuest(boundary=True), LabError("the guest's console closed"))
    assert blame(died.value) is Blame.HARNESS


def test_the_hosts_kernel_reports_a_bug(there: FakeHost) -> None:
    there.reports, there.log = [(9.0, WARNING)], f"[    9.000000] {WARNING}\n[    9.000001] more"
    with pytest.raises(HostKernelError, match=r"grace reported a bug: WARNING: (.|\n)*more"):
        check(there, FakeGuest())


def test_a_guests_kernel_dies(there: FakeHost) -> None:
    crash = GuestCrashedError(f"the guest crashed before the end:\n{PANIC}")
    guest = FakeGuest(console=FakeConsole(crash=crash))
    with pytest.raises(GuestKernelError, match=r"guest0 died:(.|\n)*Kernel panic"):
        check(there, guest)
    check(there, guest, crash)  # the test itself tells it
    check(there, guest, expected="LKDTM")


def test_a_breakdown_is_told_once(there: FakeHost) -> None:
    """A test that failed by its guest's death gives the guest back without a second failure."""
    crash = GuestCrashedError(f"the guest crashed before the end:\n{PANIC}")
    fleet = Fleet(cast(Host, there), Progress(enabled=False))
    fleet._lent = [cast(Guest, FakeGuest(console=FakeConsole(crash=crash)))]
    fleet.check(crash)
    fleet.check()


@pytest.mark.parametrize("where", ["host", "guest"])
def test_an_expected_report_is_none(there: FakeHost, where: str) -> None:
    there.reports = [(9.0, WARNING)] if where == "host" else []
    guest = FakeGuest(console=FakeConsole(f"[ 9.0] {WARNING}" if where == "guest" else ""))
    check(there, guest, expected="WARNING: .*iommufd")


def test_a_guests_kernel_reports_a_bug_once(there: FakeHost) -> None:
    guest, watch = (
        FakeGuest(console=FakeConsole(f"[ 9.0] {WARNING}\n[ 9.1] more")),
        Watch(cast(Host, there)),
    )
    both = [cast(Guest, guest)]
    with pytest.raises(GuestKernelError, match=r"guest0 reported a bug: \[ 9.0\](.|\n)*more"):
        watch.check(both)
    watch.check(both)
    watch.forget()
    with pytest.raises(GuestKernelError):
        watch.check(both)


def test_a_host_that_is_gone_without_a_word_is_not_the_products(there: FakeHost) -> None:
    there.printed = [f"{PANIC}, which was told before\n"]
    watch = Watch(cast(Host, there))
    watch.check([])
    there.lost = True
    there.printed[0] += "something else\n"
    watch.check([], LabError("the link is lost"))


def test_what_a_host_printed_before_it_was_opened_is_none_of_its_last_words(
    there: FakeHost,
) -> None:
    """The first test of a run loses the link: the console has the host's own boot, too."""
    there.printed = [f"EFI stub: Booting Linux Kernel...\n{PANIC}, which is told already\n"]
    there.lost = True
    check(there, FakeGuest(), LinkLostError("the link is lost"))


@pytest.mark.parametrize(
    "then",
    [
        lambda printed: printed.__setitem__(0, f"booted\n{PANIC}\n"),
        lambda printed: printed.__setitem__(slice(0, 1), [f"booted\n{PANIC}\n", "again\n"]),
    ],
    ids=["down", "booted again"],
)
def test_a_dead_host_has_last_words(there: FakeHost, then: Callable[[list[str]], None]) -> None:
    there.printed = ["booted\n"]
    watch = Watch(cast(Host, there))
    watch.check([])
    there.lost = True
    then(there.printed)
    with pytest.raises(HostKernelError, match=r"grace died: .*Kernel panic"):
        watch.check([], LabError("the link is lost"))
