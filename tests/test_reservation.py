"""A run waits for a host that another run has, says who that is, and does not count it as a failure
of the host."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from harness.artifacts.store import Store
from harness.errors import LabError
from harness.host import session as sessions
from harness.host.host import Host, HostDescription
from harness.host.session import ReservedError, Session
from harness.host.target import LONGEST_ADDRESS
from harness.lab import pool, reservation
from harness.lab.inventory import HostEntry, Inventory, Virtual
from harness.lab.pool import HostGivenUpError, Hosts
from harness.lab.reservation import opened, reserved
from harness.lab.software import Software
from harness.progress import Progress
from harness.waiting import wait_for
from tests.local_host import LocalHost
from tests.suite_run import run_suite

QUIET = Progress(enabled=False)
ME = f"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}, since 20"


def at(name: str, address: str, port: int = 22) -> HostEntry:
    files = {"key": Path("/key"), "known_hosts": Path("/known_hosts")}
    return HostEntry.model_validate({"name": name, "address": address, "port": port, **files})


def shown() -> tuple[Progress, Callable[[], str]]:
    """Return a progress, and a call that returns what it has shown."""
    out = io.StringIO()
    return Progress(Console(file=out, force_terminal=False)), out.getvalue


# -- here --------------------------------------------------------------------------------------


def test_an_address_may_be_as_long_as_one_can_be(tmp_path: Path) -> None:
    """The name of a file has at most 255 bytes, and an address 253."""
    long = ".".join(["a" * 62] * 4)[:LONGEST_ADDRESS]
    with reserved(at("grace-1", long), tmp_path, QUIET):
        with pytest.raises(ReservedError):
            with reserved(at("mine", long), tmp_path, QUIET, wait=0):
                pass
        with reserved(at("other", f"b{long[1:]}"), tmp_path, QUIET, wait=0):
            pass
        with reserved(at("other", f"{long[:-1]}b"), tmp_path, QUIET, wait=0):
            pass


def test_one_machine_in_two_inventories_is_one(tmp_path: Path) -> None:
    with reserved(at("grace-1", "grace.lab"), tmp_path, QUIET):
        with pytest.raises(ReservedError) as caught:
            with reserved(at("mine", "Grace.lab"), tmp_path, QUIET, wait=0):
                pass
        assert f"host mine is in use by {ME}" in str(caught.value)
        assert f"end it by `kill {os.getpid()}` on {socket.gethostname()}" in str(caught.value)
        with reserved(at("grace-1", "grace.lab", 2222), tmp_path, QUIET, wait=0):
            pass
        with reserved(HostEntry(name="grace-1", virtual=Virtual()), tmp_path, QUIET, wait=0):
            pass


RESERVE = """
import sys
from pathlib import Path
from harness.errors import LabError
from harness.lab.inventory import HostEntry, Virtual
from harness.lab.reservation import reserved
from harness.progress import Progress
try:
    with reserved(HostEntry(name="one", virtual=Virtual()), Path(sys.argv[1]), Progress()):
        pass
except LabError as problem:
    print(problem)
"""


def test_a_full_cache_is_told(tmp_path: Path) -> None:
    """The cache is on a disk of its own, which has no room for who has the host."""
    full = 'mount -t tmpfs -o size=8k none "$1" && head -c 8192 /dev/zero >"$1/full" && '
    script = f'{full} "$2" -c "$3" "$1" && ls "$1/reservations"'
    ended = subprocess.run(
        [
            *("unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", tmp_path),
            *(sys.executable, RESERVE),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert ended.stdout.startswith("disk full while reserving host one: "), ended.stderr
    assert ended.stdout.splitlines()[-1] == "virtual-one.lock"


def test_a_run_waits_and_says_for_whom(tmp_path: Path) -> None:
    entry, (progress, said) = at("grace-1", "::1"), shown()
    release = threading.Event()

    def hold() -> None:
        with reserved(entry, tmp_path, QUIET):
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    file = tmp_path / "reservations"
    wait_for("the other to have it", lambda: list(file.glob("*.holder")), deadline=5)
    threading.Timer(0.5, release.set).start()
    with reserved(entry, tmp_path, progress):
        assert release.is_set()
    holder.join()
    assert f"wait: host grace-1 is in use by {ME}" in said()
    assert "(at most 3600 s) …" in said()


def test_a_wait_has_an_end(tmp_path: Path) -> None:
    entry = at("grace-1", "grace.lab")
    with reserved(entry, tmp_path, QUIET), pytest.raises(ReservedError, match="waited 1 s for it"):
        with reserved(entry, tmp_path, QUIET, wait=1):
            pass


# -- on the host -------------------------------------------------------------------------------


@pytest.fixture
def description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostDescription:
    """Return the description of this machine as a host. Opening it starts a session, and probes
    nothing."""

    @contextlib.contextmanager
    def open_session(*_: object) -> Iterator[Host]:
        running = Session.start(LocalHost())
        try:
            yield cast(Host, SimpleNamespace(name="grace-1", session=running))
        finally:
            running.end()

    if os.geteuid() != 0:
        pytest.skip("only root reads the kernel's log")
    monkeypatch.setattr(sessions, "ROOT", str(tmp_path / "hil"))
    monkeypatch.setattr(reservation, "_ASK_HOST", 0.2)
    monkeypatch.setattr(Host, "open", open_session)
    return cast(HostDescription, SimpleNamespace(name="grace-1"))


def test_a_killed_predecessor_is_waited_for(description: HostDescription) -> None:
    killed = Session.start(LocalHost(), lease=2.0)
    killed.on_end("a", "exit 3")
    killed.abandon()
    progress, said = shown()
    with opened(description, (), progress) as host:
        assert host.session.name != killed.name
    assert f"wait: host this-machine is in use by {ME}" in said()
    assert f"`kill $(cat {killed.folder}/agent.pid)` on the host" in said()
    assert f"host grace-1: session {killed.name} of {ME}" in said()
    assert "ended because its lease ran out: this could not be undone: {'a': ''}" in said()


def test_two_users_of_one_machine_meet_on_the_host(
    description: HostDescription, tmp_path: Path
) -> None:
    """Each has a cache, so that they do not meet here."""
    entry, release = at("grace-1", "grace.lab"), threading.Event()
    first, second = threading.Event(), threading.Event()

    def run(cache: str, began: threading.Event) -> None:
        with reserved(entry, tmp_path / cache, QUIET), opened(description, (), QUIET):
            began.set()
            release.wait(20)

    runs = [threading.Thread(target=run, args=one) for one in (("a", first), ("b", second))]
    runs[0].start()
    assert first.wait(10)
    runs[1].start()
    assert not second.wait(1.5)
    release.set()
    assert second.wait(10)
    for one in runs:
        one.join()


def test_another_holder_is_another_line() -> None:
    progress, said = shown()
    who = iter("aab")

    def take() -> None:
        for one in who:
            raise ReservedError(f"in use by {one}", by=one, ending="ask")

    reservation.waited(take, progress, 10, 0.01)
    lines = re.findall("wait: in use by (.); to have it now, ask", said())
    assert lines[::2] == ["a", "b"]


# -- a run -------------------------------------------------------------------------------------


def hosts_of(tmp_path: Path) -> Hosts:
    lab = Inventory(lab="mine", hosts=(at("grace-1", "grace.lab"),))
    return Hosts(lab, Software(), Store(tmp_path), QUIET)


def test_a_busy_host_is_no_failure_and_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def busy(*_: object, wait: float) -> Any:
        calls.append(f"waited {wait:.0f}")
        raise ReservedError("host grace-1 is in use by somebody; waited 3600 s for it")

    monkeypatch.setattr(pool, "opened", busy)
    monkeypatch.setattr(Software, "applied", lambda *_: (None, ()))
    hosts = hosts_of(tmp_path)
    with pytest.raises(ReservedError):
        hosts.open("grace-1")
    assert hosts._failures == {}
    # It is not kept from others here, either.
    with reserved(at("grace-1", "grace.lab"), tmp_path, QUIET, wait=0):
        pass
    for _ in range(2):
        with pytest.raises(HostGivenUpError, match="given up: host grace-1 is in use by somebody"):
            hosts.open("grace-1")
    assert calls == ["waited 3600"]


def test_a_host_that_does_not_open_is_still_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise LabError("no QEMU")

    monkeypatch.setattr(pool, "opened", broken)
    monkeypatch.setattr(Software, "applied", lambda *_: (None, ()))
    hosts = hosts_of(tmp_path)
    with pytest.raises(LabError, match="no QEMU"):
        hosts.open("grace-1")
    assert hosts._failures == {"grace-1": ["no QEMU"]}


@pytest.fixture
def pooled(tmp_path: Path) -> Hosts:
    names = ("grace-1", "grace-2", "grace-3")
    lab = Inventory(lab="mine", hosts=tuple(at(name, f"{name}.lab") for name in names))
    return Hosts(lab, Software(), Store(tmp_path), QUIET)


def test_of_hosts_that_will_do_a_free_one_is_taken(pooled: Hosts, tmp_path: Path) -> None:
    assert pooled.likely("grace-1", "grace-2") == "grace-1"
    with reserved(at("other", "grace-1.lab"), tmp_path, QUIET, wait=0):
        assert pooled.describe("grace-1", "grace-2").name == "grace-2"
        # It has one host at a time, and keeps it while that will do.
        assert pooled.describe("grace-3", "grace-2").name == "grace-2"
        assert pooled.likely("grace-3", "grace-2") == "grace-2"
        assert pooled.describe("grace-3").name == "grace-3"
        assert pooled.last("grace-1", "grace-3") == "grace-3"
        with reserved(at("other", "grace-2.lab"), tmp_path, QUIET, wait=0):
            pass
    assert pooled.describe("grace-1", "grace-2").name == "grace-1"
    pooled.close()


def test_of_hosts_that_are_all_in_use_the_first_that_is_given_back_is_taken(
    pooled: Hosts, tmp_path: Path
) -> None:
    with (
        reserved(at("other", "grace-1.lab"), tmp_path, QUIET, wait=0),
        contextlib.ExitStack() as second,
    ):
        second.enter_context(reserved(at("other", "grace-2.lab"), tmp_path, QUIET, wait=0))
        given_back = threading.Timer(0.5, second.close)
        given_back.start()
        assert pooled.describe("grace-1", "grace-2").name == "grace-2"
        given_back.join()
    pooled.close()


def test_a_host_that_somebody_has_from_another_machine_is_not_waited_for_if_another_will_do(
    pooled: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, float]] = []

    def busy(described: str, *_: object, wait: float) -> Any:
        tried.append((described, wait))
        raise ReservedError(f"host {described} is in use by somebody")

    monkeypatch.setattr(pool, "opened", busy)
    monkeypatch.setattr(Software, "applied", lambda _, described: (described.name, ()))
    with pytest.raises(ReservedError):
        pooled.open("grace-1", "grace-2")
    assert tried == [("grace-1", 0), ("grace-2", 3600)]
    # The first one may be free again by then.
    assert pooled.likely("grace-1", "grace-2") == "grace-1"


def test_a_host_that_failed_is_the_last_that_is_tried_again(
    pooled: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise LabError("no QEMU")

    monkeypatch.setattr(pool, "opened", broken)
    monkeypatch.setattr(Software, "applied", lambda *_: (None, ()))
    for host in ("grace-1", "grace-2", "grace-1", "grace-2"):
        assert pooled.likely("grace-1", "grace-2") == host
        with pytest.raises(LabError, match="no QEMU"):
            pooled.open("grace-1", "grace-2")
    with pytest.raises(HostGivenUpError, match="host grace-1 is given up: no QEMU; then: no QEMU"):
        pooled.open("grace-1", "grace-2")
    assert pooled.last("grace-1", "grace-2") == "grace-1"


SUITE = """
import time

import pytest

@pytest.mark.timeout(1)
def test_waits(progress):
    with progress.waiting("wait for another", 10):
        time.sleep(1.5)

@pytest.mark.timeout(1)
def test_hangs_after_it_has_waited(progress):
    with progress.waiting("wait for another", 10):
        pass
    time.sleep(5)
"""


def test_a_wait_does_not_use_up_a_tests_time(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "test_time.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    ended = run_suite(tmp_path)
    (run,) = (tmp_path / "out").iterdir()
    tests = json.loads((run / "result.json").read_text())["tests"]
    assert [test["outcome"] for test in tests] == ["passed", "failed"], ended.stdout
    assert "Timeout" in tests[1]["message"]
