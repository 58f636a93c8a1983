"""The virtual Grace host: one QEMU under TCG, its state folder, its snapshots.

What one process must tell the next about it is in the state folder: `state.json` (process, port),
the console log, QEMU's messages, the NVMe drives, the snapshots. `up` starts it detached, so that
it outlives the command that started it; `down` deletes drives and snapshots and keeps the logs, of
which those of a few earlier boots are kept, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import filelock
import psutil

from harness.artifacts import debian, images, kernel
from harness.artifacts.store import Recipe, Store, content_key
from harness.errors import LabError
from harness.progress import Progress
from harness.qmp import Monitor
from harness.virtual.console import ConsoleLog, put_aside
from harness.virtual.qtest import Qtest
from harness.virtual.running import Running
from harness.virtual.snapshots import Snapshot
from harness.virtual.sockets import free_port, listening
from harness.virtual.topology import CMDQV_SPI, Topology, VirtualDevice
from harness.waiting import wait_for

#: sshd prints this on the console once it answers connections.
READY = "Server listening on"
BOOT_SECONDS = 60.0
#: QEMU does not save EL2's timers (target/arm/machine.c has those of EL1 only), so that a kernel
#: that runs at EL2 never wakes after a restore. In nVHE mode it runs at EL1 and uses a saved timer.
_SNAPSHOT_SAFE = "kvm-arm.mode=nvhe"


def recipes(store: Store, progress: Progress) -> list[Recipe]:
    """Return the recipes of all that a virtual host is made of, in the order to build them."""
    return [
        images.emulator(),
        kernel.recipe(progress),
        images.guest_initramfs(),
        images.host_disk(store, progress),
    ]


class VirtualMachine:
    """The virtual machine of one lab host, running or not."""

    def __init__(self, name: str, topology: Topology, store: Store, progress: Progress) -> None:
        self.name = name
        self.topology = topology
        self.store = store
        self.progress = progress
        self.folder = store.root / "hosts" / name
        self._lock = filelock.FileLock(self.folder / "lock")
        self.host_disk = images.host_disk(store, progress)

    # -- artifacts and files ---------------------------------------------------------------

    def build(self) -> None:
        """Build every artifact that is missing. Raises LabError."""
        for recipe in recipes(self.store, self.progress):
            self.store.get(recipe, self.progress)

    @property
    def user_key(self) -> Path:
        return self.store.path(self.host_disk) / "user_key"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def console(self) -> ConsoleLog:
        """Return what the machine prints on its serial console, and what it printed in its last
        boots."""
        return ConsoleLog(self.folder / "console.log")

    @property
    def _messages(self) -> Path:
        """Return the path of what the machine's QEMU prints."""
        return self.folder / "qemu.log"

    @property
    def _silicon_messages(self) -> Path:
        return self.folder / "silicon.log"

    @property
    def _state(self) -> Path:
        return self.folder / "state.json"

    # -- life ------------------------------------------------------------------------------

    def running(self) -> Running | None:
        """Return the record of the machine's process, or None when it does not run."""
        return Running.read(self._state)

    def up(self, *, owner: int | None) -> Running:
        """Start the machine unless it runs, and return its record once sshd answers. `owner` is the
        pid that will take it down, or None if it shall stay up.

        A machine whose owner was killed is ended first, because its state is unknown. Raises
        LabError when it does not boot, or when the one that runs was built from older sources.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            found = self.running()
            if found and not found.orphaned():
                self._check_current(found)
                return found
            self._end()
            self.build()
            with self.progress.step(f"boot virtual host {self.name}", 4):
                for device in self._with_disks():
                    _blank(self._disk(device), device.emulation.disk_bytes)
                # The last words of a boot that failed stay; and this boot is detected by what it
                # prints itself.
                self.console.begin_boot()
                put_aside(self._messages)
                put_aside(self._silicon_messages)
                state = self._start([], free_port(), owner)
                try:
                    self._await_boot(state)
                except BaseException:
                    self._end()
                    raise
                return state

    def _check_current(self, found: Running) -> None:
        if found.built_from != self._built_from():
            raise LabError(
                f"virtual host {self.name} is up, but was built from older sources",
                fix=f"run `hil lab down --host {self.name}`, then repeat the command",
            )

    def _built_from(self) -> str:
        parts = (images.emulator(), kernel.recipe(self.progress), self.host_disk)
        return content_key(
            *(part.entry for part in parts), repr(self.topology), self.topology.devices()
        )

    def disown(self) -> None:
        """Let the machine stay up after its owner's end, for a person to look inside."""
        with self._lock:
            found = self.running()
            if found:
                replace(found, owner=None).write(self._state)

    def down(self) -> bool:
        """End the machine and delete its drives and snapshots. Return whether it ran."""
        if not self.folder.exists():
            return False
        with self._lock:
            ran = self.running() is not None
            self._end()
            for leftover in (*self.folder.glob("*.img"), *self.folder.glob("*.sock")):
                leftover.unlink()
            self.known_hosts.unlink(missing_ok=True)
            shutil.rmtree(self.folder / "snapshots", ignore_errors=True)
        return ran

    def _start(self, extra: list[str], port: int, owner: int | None) -> Running:
        tree = self.store.path(images.emulator()) / "tree"
        disk = self.store.path(self.host_disk)
        image = self.store.path(kernel.recipe(self.progress)) / "Image"
        initrd = self.folder / "acpi.cpio"
        initrd.write_bytes(self.topology.acpi_cpio())
        arguments = [
            *_emulator_command(tree),
            *("-name", f"hil-{self.name}", "-nodefaults", "-display", "none"),
            *self.topology.arguments(tree, self._drives(), self.folder / "vfio-user.sock"),
            *("-kernel", str(image), "-initrd", str(initrd)),
            "-append",
            "console=ttyAMA0 acpi=force root=/dev/vda rootfstype=erofs ro "
            "init=/usr/lib/hil/init panic=-1 loglevel=4 "
            f"{_SNAPSHOT_SAFE} {self.topology.kernel_options()}".rstrip(),
            *("-drive", f"if=none,id=root,format=raw,readonly=on,file={disk / 'root.erofs'}"),
            *("-device", "virtio-blk-pci,bus=pcie.0,drive=root"),
            *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
            *("-device", "virtio-net-pci,bus=pcie.0,netdev=net,romfile="),
            *("-device", "virtio-rng-pci,bus=pcie.0"),
            *("-chardev", f"file,id=console,path={self.console.path},append=on"),
            *("-serial", "chardev:console"),
            "-no-reboot",
        ]
        self._write_known_hosts(disk, port)
        with (
            self._silicon(),
            listening(self.folder / "qmp.sock") as monitor,
            listening(self.folder / "qtest.sock") as qtest,
        ):
            arguments += ["-chardev", f"socket,id=qmp,fd={monitor.fileno()},server=on,wait=off"]
            arguments += ["-object", "monitor-qmp,id=mon.qmp,chardev=qmp"]
            arguments += ["-chardev", f"socket,id=qtest,fd={qtest.fileno()},server=on,wait=off"]
            arguments += ["-qtest", "chardev:qtest", "-qtest-log", "none", *extra]
            with self._messages.open("ab") as messages:
                process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=messages,
                    stderr=subprocess.STDOUT,
                    pass_fds=[monitor.fileno(), qtest.fileno()],
                    start_new_session=True,
                )
        try:
            started = psutil.Process(process.pid).create_time()
            state = Running(process.pid, started, port, owner, self._built_from())
            state.write(self._state)
        except BaseException:
            # Without a record, for example after Ctrl-C or on a full disk, nobody would end it.
            process.kill()
            process.wait()
            raise
        return state

    @contextmanager
    def _silicon(self) -> Iterator[None]:
        """Start the CMDQV's process, if the host has one, for the QEMU that the body starts. The
        process ends with that QEMU, or here if the body fails."""
        if self.topology.cmdqv is None:
            yield
            return
        with (
            listening(self.folder / "vfio-user.sock") as device,
            listening(self.control) as control,
            self._silicon_messages.open("ab") as messages,
        ):
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "harness.virtual.silicon.process"),
                    *("--vfio-user", str(device.fileno()), "--control", str(control.fileno())),
                    *("--qtest", str(self.folder / "qtest.sock")),
                    *("--qmp", str(self.folder / "qmp.sock")),
                    *("--smmu", hex(self.topology.smmu_nodes()[0].base)),
                    *("--spi", str(CMDQV_SPI)),
                    *("--parameters", json.dumps(asdict(self.topology.cmdqv))),
                ],
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=subprocess.STDOUT,
                pass_fds=[device.fileno(), control.fileno()],
                start_new_session=True,
            )
        try:
            yield
        except BaseException:
            process.kill()
            process.wait()
            raise

    @property
    def control(self) -> Path:
        """Return the path of the control socket of the CMDQV's process."""
        return self.folder / "silicon.sock"

    def _end(self) -> None:
        """Kill the machine's process, if it runs, and wait until it is gone."""
        state = self.running()
        if state:
            os.kill(state.pid, signal.SIGKILL)
            wait_for(
                f"the end of virtual host {self.name} (pid {state.pid})",
                state.gone,
                deadline=10,
                interval=0.005,
            )
        self._state.unlink(missing_ok=True)

    def _await_boot(self, state: Running) -> None:
        def booted() -> bool:
            console = self.console.text()
            if "Kernel panic" in console:
                raise LabError(
                    f"virtual host {self.name} panicked:\n{_tail(console)}",
                    fix=f"read {self.console.path}",
                )
            self._check_alive(state)
            return READY in console

        wait_for(
            f"virtual host {self.name} to boot",
            booted,
            deadline=BOOT_SECONDS,
            last_seen=lambda: _tail(self.console.text()),
        )

    def _check_alive(self, state: Running) -> None:
        if state.gone():
            said = self._messages.read_text(errors="replace")
            raise LabError(f"the QEMU of virtual host {self.name} ended:\n{_tail(said)}")

    def _with_disks(self) -> list[VirtualDevice]:
        return [device for device in self.topology.devices() if device.emulation.disk_bytes]

    def _disk(self, device: VirtualDevice) -> Path:
        return self.folder / f"{device.id}.img"

    def _drives(self) -> dict[str, Path]:
        return {device.id: self._disk(device) for device in self._with_disks()}

    def _write_known_hosts(self, disk: Path, port: int) -> None:
        key = (disk / "host_key.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{port} {' '.join(key)}\n")

    # -- snapshots -------------------------------------------------------------------------

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """Yield the QMP monitor of the QEMU that emulates the host. Raises LabError."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(self.folder / "qmp.sock"))
        except OSError as problem:
            sock.close()
            raise LabError(
                f"virtual host {self.name} has no monitor: {problem}",
                fix=f"run `hil lab up --host {self.name}`",
            ) from problem
        with Monitor.on(sock, self.name) as monitor:
            yield monitor

    def _qtest(self) -> AbstractContextManager[Qtest]:
        return Qtest.on(self.folder / "qtest.sock")

    def _unsaved(self) -> list[str]:
        return [one.emulated_bdf for one in self.topology.devices() if not one.emulation.saved]

    def _snapshot(self, name: str) -> Snapshot:
        return Snapshot(self.folder / "snapshots" / name)

    def has(self, name: str) -> bool:
        return self._snapshot(name).complete

    def save(self, name: str, note: str) -> None:
        """Save a snapshot `name`; the machine runs on afterwards. Raises LabError."""
        drives = self._drives().values()
        with self.progress.step(f"save snapshot {name}", 4):
            with self.monitor() as monitor, self._qtest() as qtest:
                self._snapshot(name).save(monitor, qtest, drives, self._unsaved(), note)

    def restore(self, name: str) -> str:
        """Restore snapshot `name` and return its note. This cuts every connection to the host.
        Raises LabError when there is no such snapshot or the machine does not run."""
        snapshot = self._snapshot(name)
        if not snapshot.complete:
            raise LabError(
                f"virtual host {self.name} has no snapshot {name}",
                fix="save it first: `hil lab down` deletes snapshots",
            )
        with self._lock:
            before = self.running()
            if before is None:
                raise LabError(
                    f"virtual host {self.name} is not up",
                    fix=f"run `hil lab up --host {self.name}`",
                )
            self._end()
            snapshot.restore_drives(self._drives().values())
            self.console.note(f"snapshot {name} is restored")
            state = self._start(["-incoming", "defer"], before.port, before.owner)
            try:
                try:
                    with self.monitor() as monitor, self._qtest() as qtest:
                        snapshot.load(monitor, qtest, lambda: self._check_alive(state))
                except LabError:
                    # A QEMU that fails closes its sockets a moment before it ends.
                    with contextlib.suppress(psutil.Error):
                        psutil.Process(state.pid).wait(1)
                    self._check_alive(state)
                    raise
            except BaseException:
                self._end()
                raise
        return snapshot.note


def _emulator_command(tree: Path) -> list[str]:
    qemu = debian.program(tree, "qemu-system-aarch64")
    return [*qemu, "-L", str(tree / "usr/share/qemu")]


def _blank(drive: Path, size: int) -> None:
    with drive.open("wb") as file:
        file.truncate(size)


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join("  " + line for line in text.strip().splitlines()[-lines:])
