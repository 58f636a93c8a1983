"""Runs share two virtual hosts that a real labgrid hands out: two runs have one each, a third takes
over from one that is killed, and a host that panics comes back by its place's power."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.artifacts.store import Store
from harness.checkout import ROOT
from harness.host.target import Target
from harness.lab import inventory
from harness.lab.provide import describe_virtual, machine
from harness.progress import Progress
from harness.waiting import wait_for
from tests.labgrid_lab import Labgrid, labgrid
from tests.suite_run import PLUGINS, results, run_suite, write_suite

pytestmark = [pytest.mark.lab, pytest.mark.long]

NAMES = ("vgrace-place-1", "vgrace-place-2")
SMALL = "{memory_mib: 2048, smmus: 1, plain: true}"
VIRTUAL = "lab: virtual\nhosts:\n" + "".join(
    f"  - name: {name}\n    virtual: {SMALL}\n" for name in NAMES
)
QUIET = Progress(enabled=False)
SUITE = """
from pathlib import Path
from harness.waiting import wait_for

def test_works(host):
    assert host.connection.run("true").status == 0
    Path("entered").touch()
    wait_for("leave to go on", lambda: not Path("hold").exists(), deadline=600)

def test_panics(host):
    if Path("panic").exists():
        host.connection.run(Path("panic").read_text())

def test_works_again(host):
    assert host.connection.run("true").status == 0
"""


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    """Yield where the hosts are, which are up, and stay up whoever restarts them."""
    file = tmp_path_factory.mktemp("virtual") / "virtual.yaml"
    file.write_text(VIRTUAL)
    found = {}
    with contextlib.ExitStack() as stack:
        for entry in inventory.load(file).hosts:
            vm = machine(entry, Store(), QUIET)
            assert vm
            running = vm.up(stay=True)
            stack.callback(vm.down)
            found[entry.name] = describe_virtual(entry, vm, running).target
        yield found


@contextlib.contextmanager
def sockets(folder: Path) -> Iterator[int]:
    """Yield the port of a PDU, of the model that labgrid calls simplerest, whose sockets are the
    virtual hosts' power: http://…/HOST/VALUE."""
    (folder / "virtual.yaml").write_text(VIRTUAL)

    def power(action: str, host: str) -> str:
        lab = f"--lab={folder / 'virtual.yaml'}"
        return subprocess.run(
            [sys.executable, "-m", "harness.cli", "lab", "power", lab, "--force", action, host],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    class Pdu(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, host, *value = self.path.split("/")
            if value:
                power("on" if value[0] == "1" else "off", host)
            answer = b"1" if power("status", host).endswith("on\n") else b"0"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pdu) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def lab(targets: dict[str, Target], tmp_path: Path) -> Iterator[Labgrid]:
    """Yield a labgrid that has the hosts as places, and write the inventory that asks for one."""
    with sockets(tmp_path) as pdu, labgrid(tmp_path / "labgrid") as one:
        groups = {
            name: {
                "host": {
                    "cls": "NetworkService",
                    "address": target.address,
                    "port": target.port,
                    "username": target.user,
                },
                "power": {
                    "cls": "NetworkPowerPort",
                    "model": "simplerest",
                    "host": f"http://127.0.0.1:{pdu}/{name}/{{value}}",
                    "index": 0,
                },
            }
            for name, target in targets.items()
        }
        one.export("lab-a", groups)
        table = ""
        for name, target in targets.items():
            one.add(name, board="virtual")
            table += f"  {name}: {{key: {target.key}, known_hosts: {target.known_hosts}}}\n"
        (tmp_path / "lab.yaml").write_text(
            f"lab: places\ncoordinator: {one.address}\nhosts:\n"
            "  - name: grace\n    place: {board: virtual}\n    recovery: {wait: 5, dump: 5}\n"
            f"places:\n{table}"
        )
        yield one


@contextlib.contextmanager
def begun(folder: Path, lab: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a run whose first test has entered a host, and waits."""
    write_suite(folder, SUITE)
    (folder / "hold").touch()
    with (folder / "said").open("wb") as said:
        run = subprocess.Popen(
            [sys.executable, "-m", "pytest", "suites", *PLUGINS, f"--lab={lab}"],
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    try:
        wait_for(
            "a run to enter a host",
            lambda: (folder / "entered").exists() or run.poll() is not None,
            deadline=300,
        )
        assert run.poll() is None, (folder / "said").read_text()
        yield run
    finally:
        run.kill()
        run.wait()


def test_runs_share_the_hosts_and_take_over_from_one_that_is_killed(
    lab: Labgrid, tmp_path: Path
) -> None:
    file = tmp_path / "lab.yaml"
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    first, second, third = folders
    with begun(first, file) as killed, begun(second, file) as other:
        assert set(lab.who()) == set(NAMES)
        assert len(set(lab.who().values())) == 2
        killed.kill()
        killed.wait()
        assert set(lab.who()) == set(NAMES), "labgrid lets go of nothing by itself"
        # Its place is taken over; on the host its session ends with its lease.
        done = run_suite(write_suite(third, SUITE), f"--lab={file}")
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert re.search(rf"is given back: .*process {killed.pid} was killed", said)
        assert len(lab.who()) == 1
        (second / "hold").unlink()
        assert other.wait(120) == 0, (second / "said").read_text()
    assert lab.who() == {}


@pytest.mark.parametrize(
    ("before", "steps"),
    [
        # A virtual host that panics ends: its power is off.
        pytest.param(
            "true", ["is off, says its power control", "is not well: turn it on"], id="off"
        ),
        # One that stays in its panic has to be restarted.
        pytest.param(
            "echo 0 >/proc/sys/kernel/panic",
            ["is on, says its power control", "is restarted by its power control"],
            id="hangs",
        ),
    ],
)
def test_a_host_that_panics_comes_back_by_its_socket(
    before: str, steps: list[str], lab: Labgrid, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_suite(folder, SUITE)
    (folder / "panic").write_text(f"{before}; echo c >/proc/sysrq-trigger")
    done = run_suite(folder, f"--lab={tmp_path / 'lab.yaml'}")
    (run,) = (folder / "out").iterdir()
    tests = results(run)
    outcomes = [test["outcome"] for test in tests.values()]
    assert outcomes == ["passed", "failed", "passed"], done.stdout + done.stderr
    told = (run / "logs" / "grace.recovery.txt").read_text()
    for step in steps:
        assert step in told
    assert lab.who() == {}
