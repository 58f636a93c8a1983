"""A virtual host ends with the run that brought it up, however that ends; here with a program in
QEMU's place."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import filelock
import psutil
import pytest

from harness.artifacts.store import Store
from harness.progress import Progress
from harness.virtual.machine import VirtualMachine
from harness.virtual.running import ProcessId, Running
from harness.virtual.topology import Topology
from harness.waiting import wait_for
from tests.mirror import plant
from tests.processes import interruptible

ROOT = Path(__file__).parents[1]

#: A run that brings a machine up, in a thread that ends, and forks a process that stays.
RUN = """
import os, sys, threading, time
from pathlib import Path
from harness.artifacts.store import Store
from harness.progress import Progress
from harness.virtual.keeper import Program
from harness.virtual.machine import VirtualMachine
from harness.virtual.topology import Topology

vm = VirtualMachine("kept", Topology(), Store(Path(sys.argv[1])), Progress(enabled=False))
vm._make_folder()
for name in ("drive.img", "qmp.sock", "known_hosts"):
    (vm.folder / name).touch()
(vm.folder / "snapshots" / "clean").mkdir(parents=True)

def start():
    log = str(vm.folder / "qemu.log")
    programs = [Program(["sleep", one], log, []) for one in ("6001", "6002")]
    state = vm._keep(programs, 2222, time.time())
    if sys.argv[2] == "stays":
        vm._ready(state, None)

starter = threading.Thread(target=start)
with vm._lock:
    starter.start()
    starter.join()
    if os.fork():
        (vm.folder / "started").touch()
    time.sleep(600)
"""


def vm(root: Path) -> VirtualMachine:
    return VirtualMachine("kept", Topology(), Store(root), Progress(enabled=False))


@contextmanager
def run(root: Path, how: str = "ends") -> Iterator[tuple[subprocess.Popen[bytes], Running]]:
    """Yield a run that has brought its machine up, and the machine's record; end both at the
    end."""
    plant(root)
    with interruptible([sys.executable, "-c", RUN, str(root), how], cwd=ROOT) as process:
        wait_for("the run to start", (root / "hosts/kept/started").exists, deadline=20)
        record = Running.read(root / "hosts/kept/state.json")
        assert record
        forks = psutil.Process(process.pid).children()
        try:
            yield process, record
        finally:
            record.end()
            for fork in forks:
                if fork.pid != record.keeper.pid:
                    fork.kill()


def left(root: Path) -> set[str]:
    return {path.name for path in (root / "hosts/kept").iterdir()}


def test_a_killed_run_ends_its_machine(tmp_path: Path) -> None:
    """It ends although a fork of the run lives, and lives although the thread that started it has
    ended."""
    with run(tmp_path) as (process, record):
        others = psutil.Process(record.keeper.pid).children()
        assert len(others) == 2
        time.sleep(0.3)
        assert record.alive()
        process.kill()
        wait_for("the machine to end", record.gone, deadline=5)
        assert not any(one.is_running() for one in others)
        assert left(tmp_path) == {"lock", "port", "qemu.log", "started"}
        with filelock.FileLock(tmp_path / "hosts/kept/lock", timeout=0):
            pass


#: A suite whose test brings a machine up, and hangs.
SUITE = """
import time
from pathlib import Path
from harness.artifacts.store import Store
from harness.progress import Progress
from harness.virtual.keeper import Program
from harness.virtual.machine import VirtualMachine
from harness.virtual.topology import Topology

def test_hangs():
    vm = VirtualMachine("kept", Topology(), Store(Path("cache").resolve()), Progress(enabled=False))
    vm._make_folder()
    vm._keep([Program(["sleep", "6003"], str(vm.folder / "qemu.log"), [])], 2222, time.time())
    time.sleep(600)
"""


@pytest.mark.parametrize("options", [(), ("--numprocesses=1",)], ids=["pytest", "xdist"])
def test_a_killed_run_of_pytest_ends_its_machine(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Also the machine of a worker of pytest-xdist: it is ended by execnet, 5 s after the process
    that started it is gone."""
    (tmp_path / "test_suite.py").write_text(SUITE)
    plant(tmp_path / "cache")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    state = tmp_path / "cache/hosts/kept/state.json"
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    with interruptible(["env", f"PYTHONPATH={ROOT}", *pytest_run], cwd=tmp_path) as process:
        wait_for("the machine to be up", state.exists, deadline=60)
        record = Running.read(state)
        assert record
        try:
            process.kill()
            wait_for("the machine to end", record.gone, deadline=20)
        finally:
            record.end()
    assert not state.exists()


def test_a_machine_that_is_to_stay_stays(tmp_path: Path) -> None:
    with run(tmp_path, "stays") as (process, record):
        process.kill()
        process.wait()
        time.sleep(0.5)
        found = vm(tmp_path).running()
        assert found
        assert (found.process, found.owner, found.orphaned()) == (record.process, None, False)
        assert "drive.img" in left(tmp_path)
        assert vm(tmp_path).down()
        assert record.gone()
        assert "drive.img" not in left(tmp_path)


def test_a_dead_machine_of_a_killed_run_leaves_nothing(tmp_path: Path) -> None:
    with run(tmp_path) as (process, record):
        record.process.send(signal.SIGKILL)
        wait_for("it to end", lambda: not record.alive(), deadline=5)
        log = tmp_path / "hosts/kept/qemu.log"
        wait_for("its end to be told", log.read_text, deadline=5)
        assert log.read_text() == "hil: QEMU ended by signal 9\n"
        process.kill()
        wait_for("its keeper to end", record.gone, deadline=5)
        assert left(tmp_path) == {"lock", "port", "qemu.log", "started"}


def test_a_machine_ends_with_its_keeper_when_told(tmp_path: Path) -> None:
    with run(tmp_path) as (_, record):
        others = psutil.Process(record.keeper.pid).children()
        record.end()
        wait_for("the machine to end", record.gone, deadline=5)
        assert not any(one.is_running() for one in others)
        assert "drive.img" in left(tmp_path), "who ends it cleans up"


def test_a_next_machine_is_left_alone(tmp_path: Path) -> None:
    """The run was killed, and another has brought the machine up before the keeper can clean."""
    with run(tmp_path) as (process, record):
        other = ProcessId.mine()
        replace(record, process=other).write(tmp_path / "hosts/kept/state.json")
        process.kill()
        wait_for("the keeper to end", record.gone, deadline=5)
        assert "drive.img" in left(tmp_path)


def test_another_process_with_the_pid_of_an_owner_is_no_owner() -> None:
    me = ProcessId.mine()
    assert me.alive()
    assert not replace(me, started=me.started - 1).alive()
    assert not replace(me, boot="0").alive()
    record = Running(me, me, replace(me, started=me.started - 1), 22, 0.0, True, "")
    assert record.orphaned()
    assert not replace(record, owner=me).orphaned()
    replace(me, started=me.started - 1).send(signal.SIGKILL)


def test_a_process_that_waits_to_be_reaped_has_ended() -> None:
    child = subprocess.Popen(["sleep", "600"])
    identity = ProcessId.of(child.pid)
    assert identity.alive()
    identity.send(signal.SIGKILL)
    wait_for("its end", lambda: not identity.alive(), deadline=5)
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(OSError, match="No such file"):
        ProcessId.of(child.pid)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": 1}', '{"process": 5}'])
def test_what_is_no_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    assert Running.read(tmp_path / "state.json") is None


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    me = ProcessId.mine()
    record = Running(me, me, None, 22, 1.5, True, "key")
    record.write(tmp_path / "state.json")
    assert Running.read(tmp_path / "state.json") == record
    assert json.loads((tmp_path / "state.json").read_text())["process"]["pid"] == me.pid
