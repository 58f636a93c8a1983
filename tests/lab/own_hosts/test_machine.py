"""A virtual host is saved, restored and used by one run at a time, and leaves nothing behind."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from harness.artifacts.store import Store
from harness.errors import LabError
from harness.host.connection import Connection, LinkLostError
from harness.lab.inventory import HostEntry, Virtual
from harness.lab.provide import describe_virtual
from harness.lab.reservation import reserved
from harness.progress import Progress
from harness.smmu.cmdqv import Config
from harness.virtual import snapshots
from harness.virtual.machine import VirtualMachine
from harness.virtual.qtest import Qtest
from harness.virtual.running import Running
from harness.virtual.silicon.client import SiliconClient
from harness.virtual.silicon.registers import Parameters
from harness.virtual.topology import CMDQV_BDF, Topology
from harness.virtual.unsaved import config_address
from harness.waiting import wait_for
from tests.processes import ended, interruptible

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[3]
QUIET = Progress(enabled=False)
ENTRY = HostEntry(name="small", virtual=Virtual(memory_mib=2048, smmus=1))


def small(name: str, folder: Path) -> VirtualMachine:
    """Return a small host beside the lab's, which keeps its files in `folder`. Artifacts come from
    the shared cache."""
    machine = VirtualMachine(name, Topology(memory_mib=2048, smmus=1), Store(), QUIET)
    machine.folder = folder
    folder.mkdir(exist_ok=True)
    return machine


def test_a_restore_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = small("unlucky", tmp_path / "host")
    port = machine.up().port
    await_end = machine._await_end
    with socket.socket() as other:

        def end_and_lose_the_port(record: Running, gone: Callable[[], bool]) -> None:
            await_end(record, gone)
            monkeypatch.undo()
            other.bind(("127.0.0.1", port))
            other.listen()

        try:
            machine.save("clean", "note")
            monkeypatch.setattr(machine, "_await_end", end_and_lose_the_port)
            with pytest.raises(LabError, match=f"QEMU of virtual host unlucky ended(.|\n)*{port}"):
                machine.restore("clean")
            assert machine.running() is None
        finally:
            machine.down()


def test_a_save_that_takes_too_long_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = small("slow", tmp_path / "host")
    try:
        machine.up()
        monkeypatch.setattr(snapshots, "SAVE_SECONDS", 0.0)
        with pytest.raises(LabError, match="snapshot clean to be saved"):
            machine.save("clean", "note")
        assert not machine.has("clean")
        monkeypatch.undo()
        machine.save("clean", "note")
        assert machine.restore("clean") == "note"
    finally:
        machine.down()


def test_up_twice_is_one_machine_and_down_leaves_nothing(tmp_path: Path) -> None:
    machine = small("spare", tmp_path / "spare")
    first = machine.up()
    try:
        assert machine.up() == first
        staying = machine.up(stay=True)
        assert (staying.process, staying.owner) == (first.process, None)
        machine.release()
        assert machine.running() == staying
    finally:
        assert machine.down()
    assert first.gone()
    left = {path.name for path in machine.folder.iterdir()}
    assert left <= {"console.log", "qemu.log", "lock", "port"}
    assert not machine.down()


def test_a_machine_may_have_a_deep_folder(tmp_path: Path) -> None:
    """The path of a Unix socket has 107 bytes at most, and its cache may be deeper."""
    (tmp_path / ("f" * 120)).mkdir()
    machine = small("deep", tmp_path / ("f" * 120) / "host")
    machine.topology = Topology(memory_mib=2048, smmus=1, cmdqv=Parameters())
    try:
        machine.up()
        with machine.monitor() as monitor:
            assert monitor.execute("query-status")["status"] == "running"
        assert SiliconClient(machine.control).count() == 0
    finally:
        machine.down()


def test_a_restored_machine_has_the_cmdqv_that_was_saved(tmp_path: Path) -> None:
    """Its model's state, and the machine's way to its registers."""
    machine = small("with-cmdqv", tmp_path / "host")
    parameters = Parameters(log2_vcmdqs=4)
    machine.topology = Topology(memory_mib=2048, smmus=1, cmdqv=parameters)
    silicon = SiliconClient(machine.control)

    def param() -> int:
        with Qtest.on(machine.folder / "qtest.sock") as qtest:
            bar = qtest.readl(config_address(CMDQV_BDF) + 0x10)
            return qtest.readl(bar + Config.PARAM)

    try:
        machine.up()
        machine.save("clean", "")
        saved = silicon.save()
        assert silicon.leave_dirty() > 0
        assert silicon.save() != saved
        assert param() == parameters.register
        machine.restore("clean")
        assert silicon.save() == saved
        assert param() == parameters.register
    finally:
        machine.down()


def test_a_panic_ends_the_machine_and_its_words_stay(tmp_path: Path) -> None:
    """Whoever waits for a host whose kernel panics knows at once, and the next boot does not take
    away what it said."""
    machine = small("panicking", tmp_path / "host")
    try:
        first = machine.up()
        with Connection.to(describe_virtual(ENTRY, machine, first).target) as link:
            started = time.monotonic()
            with pytest.raises(LinkLostError):
                link.run("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger", timeout=60)
            assert time.monotonic() - started < 20
        wait_for("the machine to end", lambda: not first.alive(), deadline=5)
        assert machine.running() is None
        assert "Kernel panic" in machine.console.text()
        machine.up()
        assert "Kernel panic" not in machine.console.text()
        assert "Kernel panic" in machine.console.last_boot()
    finally:
        machine.down()


UP = """
import sys
from pathlib import Path
from harness.progress import Progress
from harness.virtual.machine import VirtualMachine
from harness.artifacts.store import Store
from harness.virtual.topology import Topology
vm = VirtualMachine("ctrlc", Topology(memory_mib=2048, smmus=1), Store(), Progress(enabled=False))
vm.folder = Path(sys.argv[1])
vm.up()
Path(sys.argv[1], "booted").touch()
vm.save("clean", "note")
while True:
    vm.restore("clean")
    Path(sys.argv[1], "restored").touch()
"""


@pytest.mark.parametrize("moment", ["state.json", "booted", "restored"])
def test_a_killed_run_leaves_no_machine(tmp_path: Path, moment: str) -> None:
    """SIGKILL, while the machine boots, runs or is being restored."""
    with interruptible([sys.executable, "-c", UP, str(tmp_path)], cwd=ROOT) as process:
        wait_for("the moment", (tmp_path / moment).exists, deadline=60, interval=0.01)
        process.kill()
        process.wait()

    def left() -> list[object]:
        machines = [p for p in psutil.process_iter(["cmdline"]) if _is_machine(p, tmp_path)]
        return [*machines, *tmp_path.glob("*.img"), *tmp_path.glob("s*")]

    wait_for("nothing to be left", lambda: not left(), deadline=5, last_seen=left)
    with FileLock(tmp_path / "lock", timeout=0):
        pass


def test_ctrl_c_in_a_boot_leaves_no_machine(tmp_path: Path) -> None:
    with interruptible([sys.executable, "-c", UP, str(tmp_path)], cwd=ROOT) as process:
        state = tmp_path / "state.json"
        wait_for("the machine to start", state.exists, deadline=30, interval=0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) != 0
    assert not state.exists()
    assert not [p for p in psutil.process_iter(["cmdline"]) if _is_machine(p, tmp_path)]


def _is_machine(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in word for word in process.info["cmdline"] or ()) and any(
        "qemu-system-aarch64" in word for word in process.info["cmdline"]
    )


def test_a_second_run_waits_for_the_host(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from harness.progress import Progress\n"
        "from harness.lab.inventory import HostEntry, Virtual\n"
        "from harness.lab.reservation import reserved\n"
        "entry = HostEntry(name='h', virtual=Virtual())\n"
        "with reserved(entry, Path(sys.argv[1]), Progress(enabled=False)):\n"
        "    Path(sys.argv[1], 'held').touch(); time.sleep(1.5)\n"
    )
    with interruptible([sys.executable, "-c", hold, str(tmp_path)], cwd=ROOT) as first:
        wait_for("the first to have it", (tmp_path / "held").exists, deadline=20, interval=0.01)
        started = time.monotonic()
        with reserved(HostEntry(name="h", virtual=Virtual()), tmp_path, QUIET):
            assert time.monotonic() - started > 0.5
        assert first.wait() == 0


def test_ctrl_c_in_a_test_cleans_up(tmp_path: Path) -> None:
    """A run with its own cache and host is interrupted while a guest boots, and leaves no process
    behind."""
    lab = tmp_path / "lab.yaml"
    lab.write_text("lab: own\nhosts:\n  - name: interrupted\n    virtual: {smmus: 1}\n")
    out = tmp_path / "out"
    run = [
        *(sys.executable, "-m", "pytest", "suites/veventq", "-k", "single_fault", "-q"),
        *("-p", "no:cacheprovider", "--lab", str(lab), "--out", str(out)),
    ]
    said = tmp_path / "said"
    with interruptible(run, cwd=ROOT, said=said) as process:
        folder = Store().root / "hosts" / "interrupted"
        console = folder / "console.log"
        wait_for("the run to boot its host", (folder / "state.json").exists, deadline=60)
        wait_for(
            "the run to start a guest",
            lambda: console.exists() and "Accepted" in console.read_text(errors="replace"),
            deadline=60,
        )
        time.sleep(6)  # the guest boots by now; the test must pass at any other moment, too
        process.send_signal(signal.SIGINT)
        assert ended(process, said, seconds=60) == 2
    assert not (folder / "state.json").exists()
    assert not [p for p in psutil.process_iter(["cmdline"]) if _is_machine(p, folder)]
    interrupted = HostEntry(name="interrupted", virtual=Virtual(smmus=1))
    with reserved(interrupted, Store().root, QUIET, wait=0):
        pass
    assert list(out.glob("*/result.json"))
