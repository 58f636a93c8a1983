"""Runs share the places of a real labgrid: they wait in line, hold nothing meanwhile, give
everything back, and are told when a place is not theirs any more."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness.checkout import ROOT
from harness.errors import LabError
from harness.host.connection import Connection
from harness.host.session import ReservedError
from harness.lab import claimant, places
from harness.lab import inventory as inventories
from harness.lab.claimant import Claimant
from harness.lab.coordinator import Coordinator, CoordinatorError, Place, Resource
from harness.lab.inventory import Inventory
from harness.lab.login import login
from harness.lab.placed import with_place
from harness.lab.places import PlaceLostError, held
from harness.lab.status import of_places
from harness.progress import Progress
from harness.virtual.running import ProcessId
from harness.waiting import wait_for
from tests.labgrid_lab import Labgrid, labgrid, service
from tests.sshd import Sshd, sshd
from tests.suite_run import PLUGINS, results, run_suite, write_suite

QUIET = Progress(enabled=False)
BOARD = {"board": "grace"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as one:
        assert one.target.known_hosts.exists()
        yield one


def groups(port: int) -> dict[str, Any]:
    """Return what the exporter lab-a exports: two machines, both at this port."""
    one = {
        "host": service(port),
        "bmc": service(username="admin"),
        "console": {
            "cls": "NetworkSerialPort",
            "host": "127.0.0.1",
            "port": 28802,
            "protocol": "raw",
        },
    }
    return {"grace-1": one, "grace-2": one}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, server: Sshd) -> Iterator[Labgrid]:
    """Yield a labgrid with the places grace-1 and grace-2 on one exporter."""
    with labgrid(tmp_path_factory.mktemp("labgrid")) as one:
        _fill(one, server)
        yield one


def _fill(lab: Labgrid, server: Sshd) -> None:
    lab.export("lab-a", groups(server.port))
    lab.add("grace-1", board="grace", sids="16")
    lab.add("grace-2", board="grace", sids="1")


@pytest.fixture
def own(tmp_path: Path, server: Sshd) -> Iterator[Labgrid]:
    """Yield such a labgrid for one test, which may break it."""
    with labgrid(tmp_path / "labgrid") as one:
        _fill(one, server)
        yield one


def host(called: str, server: Sshd, **tags: str) -> dict[str, Any]:
    return {
        "name": called,
        "place": tags or BOARD,
        "key": str(server.key),
        "known_hosts": str(server.target.known_hosts),
    }


def inventory(lab: Labgrid, *hosts: dict[str, Any], **more: Any) -> Inventory:
    return Inventory.model_validate(
        {"lab": "mine", "coordinator": lab.address, "hosts": hosts, **more}
    )


def shown() -> tuple[Progress, Callable[[], str]]:
    """Return a progress, and a call that returns what it has shown."""
    out = io.StringIO()
    return Progress(Console(file=out, force_terminal=False, width=400)), out.getvalue


# -- a place is a host --------------------------------------------------------------------------


def test_a_place_is_a_host_that_can_be_used(shared: Labgrid, server: Sshd) -> None:
    lab = inventory(shared, host("grace", server))
    with held(lab, lab.hosts, QUIET) as has:
        (entry,) = has.lab.hosts
        assert (entry.name, entry.address, entry.port, entry.user) == (
            *("grace", "127.0.0.1", server.port),
            "root",
        )
        assert entry.console
        assert entry.console.tcp
        assert (entry.console.tcp.port, entry.console.tcp.protocol) == (28802, "raw")
        assert shared.who() == {has.places["grace"]: Claimant.me().name}
        as_us = login(entry.model_copy(update={"user": server.user}))
        with Connection.to(as_us) as link:
            assert link.run("echo here").text == "here\n"
        has.check()
    assert shared.who() == {}
    assert shared.waiting() == []


def test_the_table_says_what_labgrid_does_not_know(tmp_path: Path) -> None:
    password = tmp_path / "password"
    lab = Inventory.model_validate(
        {
            "lab": "mine",
            "coordinator": "labgrid.lab.example",
            "hosts": [{"name": "grace", "place": BOARD, "key": "k", "qemu": "/opt/qemu"}],
            "places": {
                "grace-7": {
                    "known_hosts": "seven",
                    "qemu": "/opt/other",
                    "devices": [{"bdf": "0002:03:00.0", "role": "nvme"}],
                    "bmc": {"password_file": str(password), "certificate": "/bmc.pem"},
                }
            },
        }
    )
    resources = (
        Resource("host", "NetworkService", {"address": "grace-7.lab", "username": "hil"}),
        Resource(
            "bmc", "NetworkService", {"address": "fd00::7", "username": "admin", "port": 8443}
        ),
        Resource("tty", "NetworkSerialPort", {"host": "exporter", "port": 4001}),
        Resource("power", "NetworkPowerPort", {"model": "netio", "host": "pdu", "index": "3"}),
    )
    place = Place("grace-7", BOARD, None, 0.0, resources, ())
    entry = with_place(lab, lab.hosts[0], place)
    assert (entry.address, entry.port, entry.user) == ("grace-7.lab", 22, "hil")
    assert (entry.key, entry.known_hosts, entry.qemu) == (Path("k"), Path("seven"), "/opt/other")
    assert entry.console
    assert entry.console.tcp
    assert entry.console.tcp.protocol == "rfc2217"
    assert entry.power
    assert entry.power.redfish
    assert (entry.power.redfish.url, entry.power.redfish.user) == (
        "https://[fd00::7]:8443",
        "admin",
    )
    assert entry.power.redfish.password_file == password
    assert [device.bdf for device in entry.devices] == ["0002:03:00.0"]
    assert entry.place is None

    # Without a way to log in to the BMC, the socket controls the power.
    plain = lab.model_copy(
        update={"places": {"grace-7": lab.places["grace-7"].model_copy(update={"bmc": None})}}
    )
    power = with_place(plain, plain.hosts[0], place).power
    assert power
    assert power.pdu
    assert (power.pdu.model, power.pdu.address, power.pdu.index) == ("netio", "pdu", 3)


@pytest.mark.parametrize(
    ("resources", "table", "says"),
    [
        pytest.param(
            [Resource("host", "NetworkService", {"address": "a", "username": "root"})],
            {},
            "needs `key` and `known_hosts`",
            id="no-host-key",
        ),
        pytest.param([], {"known_hosts": "k"}, "does not say where its host is", id="no-host"),
        pytest.param(
            [Resource("host", "NetworkService", {"address": "a b", "username": "root"})],
            {"known_hosts": "k"},
            "address: String should match pattern",
            id="no-address",
        ),
        pytest.param(
            [Resource("host", "NetworkService", {"address": "a"})],
            {"known_hosts": "k"},
            "lacks 'username'",
            id="no-user",
        ),
        pytest.param(
            [
                Resource("host", "NetworkService", {"address": "a", "username": "u"}),
                Resource("power", "NetworkPowerPort", {"model": "n", "host": "p", "index": "A1"}),
            ],
            {"known_hosts": "k"},
            "cannot be used: invalid literal for int() with base 10: 'A1'",
            id="no-index",
        ),
    ],
)
def test_a_place_that_makes_no_host_is_told(
    resources: list[Resource], table: dict[str, Any], says: str
) -> None:
    lab = Inventory.model_validate(
        {
            "lab": "mine",
            "coordinator": "c",
            "hosts": [{"name": "grace", "place": BOARD, "key": "k"}],
            "places": {"grace-7": table},
        }
    )
    place = Place("grace-7", BOARD, None, 0.0, tuple(resources), ())
    with pytest.raises(LabError, match=re.escape(says)) as caught:
        with_place(lab, lab.hosts[0], place)
    assert "grace-7" in str(caught.value)


# -- who has it -----------------------------------------------------------------------------------


def test_a_name_tells_the_process() -> None:
    me = Claimant.me()
    assert Claimant.parse(me.name) == me
    assert re.fullmatch(r"[^/]+/[^/]+", me.name)
    assert not me.ended()
    assert str(me).endswith(f"on {socket.gethostname()}, process {os.getpid()}")
    assert str(Claimant.parse("lab-pc/alice")) == "alice on lab-pc"


def test_only_a_run_of_this_machine_that_ended_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Claimant.me()
    assert me.process
    pid, started = me.process
    gone = Claimant(me.host, me.user, (pid, started - 1), me.pids, me.boot)
    assert gone.ended()
    before = Claimant(me.host, me.user, me.process, me.pids, "00000000")
    assert before.ended()
    for other in (
        Claimant("elsewhere", me.user, gone.process, me.pids, me.boot),
        Claimant(me.host, me.user, gone.process, "00000000", me.boot),  # another container
        Claimant(me.host, me.user),  # somebody at the keyboard
    ):
        assert not other.ended()
        assert not Claimant.parse(other.name).ended()

    # A container's number of its processes says nothing after a reboot.
    namespace = SimpleNamespace(readlink=lambda: "pid:[4026532123]")
    monkeypatch.setattr(claimant, "_NAMESPACE", namespace)
    claimant._pids.cache_clear()
    inside = Claimant.me()
    assert inside.pids != me.pids
    rebooted = SimpleNamespace(pid=1, started=1, boot="b")
    monkeypatch.setattr(ProcessId, "mine", lambda: rebooted)
    claimant._pids.cache_clear()
    assert Claimant.me().pids != inside.pids
    claimant._pids.cache_clear()


# -- the line -------------------------------------------------------------------------------------

#: A run that holds a place until it is told, by its input, to end.
RUN = """
import sys
from pathlib import Path
from harness.lab.inventory import Inventory
from harness.lab.places import held
from harness.progress import Progress
from harness.virtual.running import ProcessId
lab = Inventory.model_validate_json(Path(sys.argv[1]).read_text())
with held(lab, lab.hosts, Progress()) as has:
    print("has", *has.places.values(), flush=True)
    sys.stdin.readline()
print("done", flush=True)
"""


@contextlib.contextmanager
def another_run(folder: Path, lab: Inventory) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds places for all hosts of an inventory, and yield it once it does;
    kill it at the end."""
    file = folder / "lab.json"
    file.write_text(lab.model_dump_json(exclude_unset=True))
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(file)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline().startswith("has ")
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_waits_and_says_for_whom(shared: Labgrid, server: Sshd, tmp_path: Path) -> None:
    both = inventory(shared, host("a", server, sids="16"), host("b", server, sids="1"))
    mine = inventory(shared, host("grace", server))
    progress, said = shown()
    with another_run(tmp_path, both) as other:
        released: list[float] = []

        def release() -> None:
            wait_for("the line to be told", lambda: "in line" in said(), deadline=20)
            assert other.stdin
            other.stdin.write("\n")
            other.stdin.flush()
            released.append(time.monotonic())

        thread = threading.Thread(target=release)
        thread.start()
        with held(mine, mine.hosts, progress) as has:
            # labgrid's coordinator looks by itself every 15 s only.
            assert time.monotonic() - released[0] < 12
            assert set(shared.who().values()) == {Claimant.me().name}
            assert has.places["grace"] in ("grace-1", "grace-2")
        thread.join()
    line = next(line for line in said().splitlines() if "in line" in line)
    assert line.startswith("wait: host grace: no place with board=grace is free; this run is first")
    for place in ("grace-1", "grace-2"):
        who = rf"{place}: \S+ on {socket.gethostname()}, process {other.pid} since 20\d\d-.* UTC"
        assert re.search(who, line), line


def test_the_second_in_line_is_told_so_and_the_wait_ends(shared: Labgrid, server: Sshd) -> None:
    mine = inventory(shared, host("grace", server, name="grace-1"))
    shared.acquire("grace-1", "lab-pc/alice")
    try:
        with shared.seen_by("lab-pc/bob") as other:
            first = other.reserve({"name": "grace-1"})
            with pytest.raises(ReservedError) as caught:
                with held(mine, mine.hosts, QUIET, wait=1.5):
                    pass
            other.cancel(first.token)
        assert "this run is second in line; grace-1: alice on lab-pc since 20" in str(caught.value)
        assert "waited" in str(caught.value)
        assert shared.who() == {"grace-1": "lab-pc/alice"}
        assert shared.waiting() == []
    finally:
        shared.release("grace-1")


def test_what_a_killed_run_had_is_given_back_and_nobody_elses(
    shared: Labgrid, server: Sshd, tmp_path: Path
) -> None:
    special = inventory(shared, host("a", server, sids="16"))
    shared.acquire("grace-2", f"{socket.gethostname()}/alice")
    try:
        with another_run(tmp_path, special) as killed:
            killed.kill()
            killed.wait()
            assert set(shared.who()) == {"grace-1", "grace-2"}
            progress, said = shown()
            with held(special, special.hosts, progress, wait=5) as has:
                assert has.places == {"a": "grace-1"}
                assert shared.who()["grace-2"] == f"{socket.gethostname()}/alice"
        assert re.search(rf"place grace-1 is given back: .*process {killed.pid} was killed", said())
    finally:
        shared.release("grace-2")


def test_two_runs_that_need_two_places_each_do_not_wait_for_each_other(
    shared: Labgrid, server: Sshd, tmp_path: Path
) -> None:
    """One takes them in one order, the other in the other, many times."""
    orders = [("16", "1"), ("1", "16")]
    labs = [
        inventory(shared, *(host(f"h{at}", server, sids=sids) for at, sids in enumerate(order)))
        for order in orders
    ]
    failed: list[BaseException] = []

    def rounds(lab: Inventory) -> None:
        try:
            for _ in range(3):
                with held(lab, lab.hosts, QUIET, wait=60) as has:
                    assert len(has.places) == 2
        except BaseException as problem:
            failed.append(problem)

    threads = [threading.Thread(target=rounds, args=(lab,)) for lab in labs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failed == []
    assert shared.who() == {}


def test_while_one_place_is_waited_for_the_other_is_free(
    shared: Labgrid, server: Sshd, tmp_path: Path
) -> None:
    lab = inventory(shared, host("a", server, sids="16"), host("b", server, sids="1"))
    progress, said = shown()
    shared.acquire("grace-2", "lab-pc/alice")
    alone: list[str] = []

    def look() -> None:
        wait_for("the line to be told", lambda: "in line" in said(), deadline=20)
        # Somebody else can have it meanwhile.
        shared.acquire("grace-1", "lab-pc/bob")
        alone.append(shared.who()["grace-1"])
        for place in ("grace-1", "grace-2"):
            shared.release(place)

    thread = threading.Thread(target=look)
    thread.start()
    with held(lab, lab.hosts, progress, wait=30) as has:
        assert has.places == {"a": "grace-1", "b": "grace-2"}
    thread.join()
    assert alone == ["lab-pc/bob"]


def test_a_wait_ends_although_a_free_place_would_do_for_either_of_two_hosts(
    own: Labgrid, server: Sshd
) -> None:
    """Each is given it when the other gives it up, in turns, for as long as a second place is in
    use. What a third host gives up has the coordinator look at once."""
    own.export("lab-b", {"spare": {"host": service(server.port)}})
    own.add("spare", "lab-b", board="spare")
    wishes = (BOARD, {"sids": "16"}, {"board": "spare"})
    lab = inventory(own, *(host(f"h{at}", server, **wish) for at, wish in enumerate(wishes)))
    progress, said = shown()
    own.acquire("grace-2", "lab-pc/alice")
    # If the wait has no end of its own, this ends it, and all places are had.
    release = threading.Timer(20, own.release, ["grace-2"])
    release.start()
    with pytest.raises(ReservedError, match=r"no place with .* is free.*; waited 5 s for it"):
        with held(lab, lab.hosts, progress, wait=5):
            pass
    release.cancel()
    assert "grace-2: alice on lab-pc since 20" in said()
    assert own.waiting() == []


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), CoordinatorError("lost")])
def test_what_ends_the_look_at_a_further_place_is_told(
    shared: Labgrid, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    lab = inventory(shared, {"name": "grace", "place": BOARD})

    def fails(*_: object) -> None:
        raise problem

    with Coordinator.connected(shared.address) as one:
        monkeypatch.setattr(one, "places", fails)
        with pytest.raises(type(problem)):
            places._Queue(one, QUIET, 1.0).take_if_free(lab.hosts[0], {})
        assert one.reservations() == []


@pytest.mark.parametrize(("most", "count"), [(1, 1), (2, 2), (5, 2)])
def test_equal_hosts_are_for_more_workers(
    shared: Labgrid, server: Sshd, most: int, count: int
) -> None:
    lab = inventory(shared, *(host(f"h{at}", server) for at in range(3)))
    progress, said = shown()
    with held(lab, lab.hosts, progress, most=most, wait=5) as has:
        assert [one.name for one in has.lab.hosts] == [f"h{at}" for at in range(count)]
        assert len(shared.who()) == count
    assert ("host h2 is not used: no other place with board=grace is free" in said()) == (most == 5)


def test_tags_that_no_place_has_are_told_at_once(shared: Labgrid, server: Sshd) -> None:
    lab = inventory(shared, host("grace", server, board="hopper"))
    with pytest.raises(LabError, match=r"no place of .* has the tags board=hopper"):
        with held(lab, lab.hosts, QUIET):
            pass


def test_fewer_places_than_hosts_are_told_at_once(shared: Labgrid, server: Sshd) -> None:
    """Also if somebody has them: to wait would not help."""
    wishes = ({"sids": "16"}, {"name": "grace-1"}, BOARD)
    lab = inventory(shared, *(host(f"h{at}", server, **wish) for at, wish in enumerate(wishes)))
    said = r"hosts h0, h1 and h2 need a place each, and there are not as many: grace-1, grace-2"
    with pytest.raises(LabError, match=said) as refused:
        with held(lab, lab.hosts, QUIET, wait=0):
            pass
    assert not isinstance(refused.value, ReservedError)
    assert shared.waiting() == []


def test_a_place_that_makes_no_host_is_given_back(shared: Labgrid, server: Sshd) -> None:
    described = host("grace", server)
    del described["known_hosts"]
    lab = inventory(shared, described)
    with pytest.raises(LabError, match="needs `key` and `known_hosts`"):
        with held(lab, lab.hosts, QUIET):
            pass
    assert shared.who() == {}


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_coordinator_that_is_not_there_is_told(
    server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.lab.coordinator.CONNECT_SECONDS", 1.0)
    nowhere = Labgrid(Path("/"), 1)
    lab = inventory(nowhere, host("grace", server))
    with pytest.raises(CoordinatorError, match=r"at 127\.0\.0\.1:1 does not answer within 1 s"):
        with held(lab, lab.hosts, QUIET):
            pass


def test_a_coordinator_that_was_restarted_ends_the_run(own: Labgrid, server: Sshd) -> None:
    lab = inventory(own, host("grace", server))
    with held(lab, lab.hosts, QUIET) as has:
        has.check()
        own.end("coordinator")
        with pytest.raises(PlaceLostError, match="was lost"):
            wait_for("the loss to be seen", lambda: has.check(), deadline=20)
        own.start()
        with pytest.raises(PlaceLostError, match="was lost"):
            has.check()
    assert own.who() == {}


def test_a_place_that_somebody_took_away_ends_the_run(own: Labgrid, server: Sshd) -> None:
    lab = inventory(own, host("grace", server, name="grace-1"))
    with held(lab, lab.hosts, QUIET) as has:
        own.release("grace-1")
        with pytest.raises(PlaceLostError, match="grace-1 was taken from this run: it is free"):
            has.check()
        own.acquire("grace-1", "lab-pc/owner")
        with pytest.raises(PlaceLostError, match="taken from this run: owner on lab-pc has it"):
            has.check()
    assert own.who() == {"grace-1": "lab-pc/owner"}


def test_an_exporter_that_is_gone_is_told(
    own: Labgrid, server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = inventory(own, host("grace", server, name="grace-1"))
    with held(lab, lab.hosts, QUIET) as has:
        own.end("lab-a")
        has.check()  # it may be started again
        monkeypatch.setattr(places, "EXPORTER_SECONDS", 0.0)
        with pytest.raises(PlaceLostError, match=r"grace-1 lacks lab-a/grace-1/.*: its exporter"):
            wait_for("the exporter to be missed", lambda: has.check(), deadline=10)
    with pytest.raises(LabError, match=r"grace-1 lacks .* its exporter is not connected"):
        with held(lab, lab.hosts, QUIET, wait=5):
            pass
    assert own.who() == {}
    assert own.waiting() == []


def test_a_place_without_exporter_is_passed_over(own: Labgrid, server: Sshd) -> None:
    """The coordinator gives places out whether their exporter is there or not."""
    own.export("lab-b", {"grace-3": {"host": service(server.port)}})
    own.add("grace-3", "lab-b", board="grace")
    own.end("lab-a")
    lab = inventory(own, host("grace", server))
    for _ in range(4):
        with held(lab, lab.hosts, QUIET, wait=5) as has:
            assert has.places == {"grace": "grace-3"}
            assert set(own.who()) == {"grace-3"}


def test_a_network_that_was_lost_leaves_nothing(own: Labgrid, server: Sshd) -> None:
    """The connection breaks, and the coordinator goes on."""
    lab = inventory(own, host("grace", server))
    with held(lab, lab.hosts, QUIET) as has:
        assert own.who()
        has.coordinator._channel.close()
        with pytest.raises(PlaceLostError, match="was lost"):
            wait_for("the loss to be seen", lambda: has.check(), deadline=20)
    assert own.who() == {}


def test_labgrid_that_is_not_installed_is_told(
    server: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "labgrid.remote", None)
    lab = inventory(Labgrid(Path("/"), 1), host("grace", server))
    with pytest.raises(LabError, match=r"pip install 'grace-smmu-hil\[labgrid\]'"):
        with held(lab, lab.hosts, QUIET):
            pass


# -- whole runs -----------------------------------------------------------------------------------

#: It asks what hosts its run has, and does not enter them: their sshd has no QEMU.
SUITE = """
import time
from pathlib import Path

import pytest

@pytest.fixture
def _ran_on(): pass

@pytest.mark.parametrize("at", range(4))
def test_knows_where(at, lab):
    print("HOSTS", [(one.name, one.port, one.place) for one in lab.hosts])
    if at == 2 and Path("break").exists():
        Path("broken").touch()
        while Path("break").exists():
            time.sleep(0.05)
"""


def write_lab(folder: Path, lab: Inventory) -> Path:
    file = folder / "lab.yaml"
    file.write_text(lab.model_dump_json(exclude_unset=True))
    return file


@pytest.mark.parametrize("workers", [(), ("--numprocesses=2",)])
def test_a_run_has_its_places_from_its_start_to_its_end(
    shared: Labgrid, server: Sshd, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    folder = write_suite(tmp_path, SUITE)
    file = write_lab(folder, inventory(shared, host("a", server), host("b", server)))
    done = run_suite(folder, f"--lab={file}", "-rP", *workers)
    assert done.returncode == 0, done.stdout + done.stderr
    names = ["a", "b"] if workers else ["a"]
    assert f"HOSTS {[(name, server.port, None) for name in names]}" in done.stdout
    assert "host a is place grace-" in done.stderr
    assert shared.who() == {}


def test_a_run_that_finds_no_place_is_the_labs_failure(
    shared: Labgrid, server: Sshd, tmp_path: Path
) -> None:
    folder = write_suite(tmp_path, SUITE)
    file = write_lab(folder, inventory(shared, host("a", server, board="hopper")))
    done = run_suite(folder, f"--lab={file}")
    assert done.returncode == 11, done.stdout + done.stderr
    assert "has the tags board=hopper" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (run,) = (folder / "out").iterdir()
    assert "has the tags board=hopper" in (run / "summary.md").read_text()


@pytest.mark.parametrize("workers", [(), ("--numprocesses=1",)])
def test_a_run_whose_places_are_taken_ends(
    shared: Labgrid, server: Sshd, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    folder = write_suite(tmp_path, SUITE)
    file = write_lab(folder, inventory(shared, host("a", server)))
    (folder / "break").touch()

    def take() -> None:
        wait_for("the third test", (folder / "broken").exists, deadline=60)
        (place,) = shared.who()
        shared.release(place)
        (folder / "break").unlink()

    thread = threading.Thread(target=take)
    thread.start()
    done = run_suite(folder, f"--lab={file}", *workers)
    thread.join()
    assert done.returncode == 11, done.stdout + done.stderr
    assert "was taken from this run: it is free" in done.stdout
    (run,) = (folder / "out").iterdir()
    assert len(results(run)) <= 3 + len(workers)
    assert "was taken from this run" in (run / "summary.md").read_text()


def test_a_run_that_is_stopped_gives_its_places_back(
    shared: Labgrid, server: Sshd, tmp_path: Path
) -> None:
    folder = write_suite(tmp_path, SUITE)
    file = write_lab(folder, inventory(shared, host("a", server)))
    (folder / "break").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "suites", *PLUGINS, f"--lab={file}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for("the third test", (folder / "broken").exists, deadline=60)
        assert len(shared.who()) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 2
    finally:
        process.kill()
        process.wait()
    assert shared.who() == {}


# -- commands -------------------------------------------------------------------------------------


def hil(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_status_says_who_has_which_place(shared: Labgrid, server: Sshd, tmp_path: Path) -> None:
    file = write_lab(tmp_path, inventory(shared, host("grace", server)))
    shared.acquire("grace-2", "lab-pc/alice")
    try:
        done = hil("lab", "status", f"--lab={file}", "--json")
        assert done.returncode == 0, done.stderr
        (told,) = json.loads(done.stdout)
        assert told["state"] == "a place of labgrid"
        assert told["places"][0] == "grace-1: free for a run"
        assert told["places"][1].startswith("grace-2: in use by alice on lab-pc since 20")
    finally:
        shared.release("grace-2")
    lab = inventory(shared, host("g", server))
    said = str(of_places(lab, lab.host()))
    assert said.splitlines() == [
        "g: a place of labgrid with board=grace",
        "  grace-1: free for a run",
        "  grace-2: free for a run",
    ]


def test_the_doctor_knows_the_coordinator(shared: Labgrid, server: Sshd, tmp_path: Path) -> None:
    file = write_lab(tmp_path, inventory(shared, host("grace", server)))
    said = hil("doctor", f"--lab={file}").stdout
    assert f"ok      labgrid's coordinator at {shared.address}: hands out hosts" in said
    assert "ok      places with board=grace: grace-1, grace-2: are hosts" in said
    assert "reaches BMCs by" not in said
    bmcs = {
        "grace-1": {"bmc": {"password_env": "BMC"}},
        "grace-2": {"bmc": {"kind": "ipmi", "password_env": "BMC"}},
    }
    file = write_lab(tmp_path, inventory(shared, host("grace", server), places=bmcs))
    said = hil("doctor", f"--lab={file}").stdout
    assert "reaches BMCs by IPMI" in said
    assert "reaches BMCs by Redfish" in said
    file = write_lab(tmp_path, inventory(Labgrid(Path("/"), 1), host("grace", server)))
    said = hil("doctor", f"--lab={file}").stdout
    assert "MISSING labgrid's coordinator at 127.0.0.1:1" in said


def test_a_shell_has_the_place_meanwhile(shared: Labgrid, server: Sshd, tmp_path: Path) -> None:
    file = write_lab(tmp_path, inventory(shared, host("grace", server)))
    done = hil("lab", "ssh", f"--lab={file}", "--", "echo $((6*7)); exit 3")
    assert (done.stdout, done.returncode) == ("42\n", 3), done.stderr
    assert shared.who() == {}


def test_power_is_of_one_place(shared: Labgrid, server: Sshd, tmp_path: Path) -> None:
    commands = {"command": {"on": "true", "off": "true", "status": "echo on"}}
    one = {**host("one", server, name="grace-1"), "power": commands}
    file = write_lab(tmp_path, inventory(shared, one, {**host("any", server), "power": commands}))
    done = hil("lab", "power", "status", "one", f"--lab={file}")
    assert (done.stdout, done.returncode) == ("one: on\n", 0), done.stderr
    done = hil("lab", "power", "cycle", "any", f"--lab={file}")
    assert "may be any of the places with board=grace: grace-1, grace-2" in done.stderr
    shared.acquire("grace-1", "lab-pc/alice")
    try:
        done = hil("lab", "power", "off", "one", f"--lab={file}")
        assert "place grace-1 is in use by alice on lab-pc since" in done.stderr
    finally:
        shared.release("grace-1")


# -- inventories ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("coordinator: c\nhosts: [{name: a, place: {board: 4}}]", "tag board: found 4; allowed: "),
        ("coordinator: c\nhosts: [{name: a, place: {Board: x}}]", "tag 'Board': allowed: lower"),
        ("coordinator: c\nhosts: [{name: a, place: {}}]", "place: found {}; allowed: a mapping of"),
        ("hosts: [{name: a, place: {board: x}}]", "a host with `place` needs `coordinator`"),
        (
            "coordinator: c\nhosts: [{name: a, virtual: {}}]",
            "`coordinator` is for hosts with `place`, and there is none",
        ),
        ("hosts: [{name: a, virtual: {}}]\nplaces: {a: {}}", "`places` is for hosts with `place`"),
        (
            "coordinator: c\nhosts: [{name: a, place: {board: x}, port: 2}]",
            "a host with `place` has its `port` from the place",
        ),
        (
            "coordinator: c\nhosts: [{name: a, place: {board: x}, address: b}]",
            "a host has either `virtual`, `address` or `place`",
        ),
        (
            "coordinator: c\nhosts: [{name: a, place: {board: x}}]\nplaces: {p: {bdf: 1}}",
            "places.p.bdf: unknown field; allowed: one of key, ",
        ),
    ],
)
def test_what_is_wrong_in_an_inventory_is_told(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(f"lab: mine\n{text}\n")
    with pytest.raises(LabError, match=re.escape(says)):
        inventories.load(file)


def test_paths_of_places_start_at_the_inventory(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(
        "lab: mine\ncoordinator: c\nhosts: [{name: a, place: {board: x}}]\n"
        "places: {p: {known_hosts: ./keys, bmc: {password_file: secret}}}\n"
    )
    place = inventories.load(file).places["p"]
    assert place.known_hosts == tmp_path / "keys"
    assert place.bmc
    assert place.bmc.password_file == tmp_path / "secret"
