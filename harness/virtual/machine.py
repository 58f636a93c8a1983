"""The virtual Grace host: one QEMU under TCG, its state folder, its snapshots.

What one process must tell the next about it is in the state folder: `state.json` (processes,
owner, port), the console log, QEMU's messages, the NVMe drives. `up` has it started by a keeper
(keeper.py), so that it can outlive the command that brought it up, and does not outlive a run that
is killed. `down` deletes drives and snapshots and keeps the port, and the logs, of which those of a
few earlier boots are kept, too. Lasting snapshots are elsewhere (lasting.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from multiprocessing.connection import wait
from pathlib import Path

import filelock

import harness
from harness.artifacts import disk, images, kernel, stack
from harness.artifacts.parts import Stack
from harness.artifacts.store import Recipe, Store, content_key
from harness.errors import HarnessError, LabError
from harness.host.last_words import LastWords
from harness.kernel_image import KernelImage
from harness.progress import LONG_SECONDS, Progress, roughly
from harness.qmp import Monitor, QmpRefusedError
from harness.virtual import keeper
from harness.virtual.console import ConsoleLog, put_aside
from harness.virtual.keeper import Program
from harness.virtual.lasting import LastingSnapshots
from harness.virtual.running import ProcessId, Running
from harness.virtual.silicon.client import SiliconClient
from harness.virtual.snapshots import Snapshot
from harness.virtual.sockets import connect, free_port, listening, opened, within
from harness.virtual.topology import CMDQV_BDF, CMDQV_SPI, Topology, VirtualDevice
from harness.waiting import wait_for

#: sshd prints this on the console once it answers connections.
READY = "Server listening on"
BOOT_SECONDS = 60.0
#: What is said of a machine that boots no given kernel.
OWN_KERNEL = "the lab's own"
#: The folder in the cache that has a folder for each virtual host.
HOSTS = "hosts"
#: The keeper needs some 50 ms to start QEMU.
_START_SECONDS = 20.0
#: QEMU does not save EL2's timers (target/arm/machine.c has those of EL1 only), so that a kernel
#: that runs at EL2 never wakes after a restore. In nVHE mode it runs at EL1 and uses a saved timer.
_SNAPSHOT_SAFE = "kvm-arm.mode=nvhe"
#: A Grace lacks FEAT_MOPS. The emulated CPU has it, and sets a page from which code was translated
#: byte by byte: to clear the memory of a guest took 1.8 s where another guest had run before.
_NO_MOPS = "arm64.nomops"


def recipes(stack: Stack, store: Store, progress: Progress) -> list[Recipe]:
    """Return the recipes of all that a virtual host is made of, in the order to build them."""
    return [
        images.emulator(stack.qemu),
        kernel.recipe(stack.source(), progress),
        images.guest_initramfs(),
        images.host_disk(stack, store, progress),
    ]


def other_kernels(stack: Stack, progress: Progress) -> list[Recipe]:
    """Return the recipes of the kernels that a stack names besides the lab's own."""
    return [kernel.recipe(source, progress) for source in stack.linux[1:]]


class VirtualMachine:
    """The virtual machine of one lab host, running or not."""

    def __init__(
        self,
        name: str,
        topology: Topology,
        store: Store,
        progress: Progress,
        kernel: KernelImage | None = None,
        *,
        debug_kernel: bool = False,
        snapshots: bool = True,
    ) -> None:
        """Describe a machine. It boots `kernel` in place of the lab's own; that is the debug kernel
        if `debug_kernel` is true. Without `snapshots` its kernel runs at EL2, as a
        Grace's does, and it cannot be saved."""
        self.name = name
        self.debug_kernel = debug_kernel
        self.snapshots = snapshots
        self.kernel = kernel
        self.topology = topology
        self.store = store
        self.progress = progress
        self.folder = store.root / HOSTS / name

    # -- artifacts and files ---------------------------------------------------------------

    def build(self) -> None:
        """Build every artifact that is missing. Whoever did not ask for that is told if it takes
        long. Raises LabError."""
        every = (*recipes(self.stack, self.store, self.progress), self._kernel)
        needed = list({recipe.entry: recipe for recipe in every}.values())
        missing = [recipe for recipe in needed if not self.store.has(recipe)]
        seconds = sum(recipe.expected_seconds for recipe in missing)
        if seconds > LONG_SECONDS:
            self.progress.note(
                f"virtual host {self.name} is built first, which takes {roughly(seconds)}: "
                f"{', '.join(recipe.name for recipe in missing)}. After Ctrl-C the next command "
                "goes on with it; --no-build refuses to build"
            )
        for recipe in needed:
            self.store.get(recipe, self.progress)

    @cached_property
    def stack(self) -> Stack:
        """Return what the machine is built from. Raises LabError when that is not known yet, and
        cannot be found."""
        return stack.in_use(self.store.root, self.progress)

    @cached_property
    def host_disk(self) -> Recipe:
        return images.host_disk(self.stack, self.store, self.progress)

    @cached_property
    def _emulator(self) -> Recipe:
        return images.emulator(self.stack.qemu)

    @cached_property
    def _kernel(self) -> Recipe:
        """Return the recipe of the kernel that the machine boots."""
        if self.kernel:
            return images.given_kernel(self.kernel)
        return kernel.recipe(self.stack.source(), self.progress)

    @cached_property
    def _lock(self) -> filelock.BaseFileLock:
        return filelock.FileLock(self.folder / "lock")

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

    @property
    def _port(self) -> Path:
        """Return the path of sshd's last port here, which outlives the machine."""
        return self.folder / "port"

    # -- life ------------------------------------------------------------------------------

    def running(self) -> Running | None:
        """Return the record of the machine, or None when it does not run."""
        record = Running.read(self._state)
        return record if record and record.alive() else None

    def up(self, *, stay: bool = False) -> Running:
        """Start the machine unless it runs, and return its record once sshd answers. The machine
        ends with this process, unless it is to `stay` up, or ran already. sshd has the port that it
        had last, if that is free: whoever knows the machine finds it again.

        A machine whose owner was killed is ended first, because its state is unknown. Raises
        LabError when it does not boot, or when the one that runs was built from older sources or
        runs another kernel, and HostKernelError when a kernel that was given panics.
        """
        self._make_folder()
        with self._lock:
            found = self.running()
            if found and not found.orphaned():
                self._check_current(found)
                return self._ready(found, None) if stay else found
            self._end()
            self.build()
            if self.snapshots:
                # What somebody edits from now on is not what this machine is started by.
                _ = self.lasting
            what = f"boot virtual host {self.name}"
            with self.progress.step(what, 4), disk.told_when_full(f"trying to {what}", self.folder):
                for device in self._with_disks():
                    _blank(self._disk(device), device.emulation.disk_bytes)
                # The last words of a boot that failed stay; and this boot is detected by what it
                # prints itself.
                self.console.begin_boot()
                put_aside(self._messages)
                put_aside(self._silicon_messages)
                try:
                    state = self._start([], free_port(self._last_port()), time.time())
                    self._await_boot(state)
                    return self._ready(state, None if stay else state.owner)
                except BaseException:
                    self._end()
                    raise

    def _make_folder(self) -> None:
        """Make the machine's folder. Others must not enter it: who can connect to the sockets there
        has the machine. Raises LabError."""
        disk.prepare(self.store.root)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)

    def _check_current(self, found: Running) -> None:
        if found.kernel != self._kernel_words():
            raise LabError(
                f"virtual host {self.name} is up with another kernel: {found.kernel or OWN_KERNEL}",
                fix=f"run `hil lab down --host {self.name}`, then repeat the command; or "
                "give it the same --host-kernel",
            )
        if found.built_from != self._built_from():
            raise LabError(
                f"virtual host {self.name} is up, but was built from older sources",
                fix=f"run `hil lab down --host {self.name}`, then repeat the command",
            )

    def _kernel_words(self) -> str:
        """Return what tells the given kernel from others; nothing for the lab's own."""
        return str(self.kernel or "")

    def _built_from(self) -> str:
        parts = (self._emulator, self._kernel, self.host_disk)
        return content_key(
            *(part.entry for part in parts),
            *(repr(self.topology), self.topology.devices(), self.snapshots, self.debug_kernel),
        )

    def disown(self) -> None:
        """Let the machine stay up after its owner's end, for a person to look inside."""
        with self._lock:
            found = self.running()
            if found:
                self._ready(found, None)

    def _ready(self, state: Running, owner: ProcessId | None) -> Running:
        """Record that the machine answers, and which process it ends with."""
        state = replace(state, owner=owner, booted=True)
        state.write(self._state)
        return state

    def release(self) -> None:
        """Take the machine down if this process brought it up, and not to stay."""
        record = Running.read(self._state)
        if record and record.owner == ProcessId.mine():
            self.down()

    def down(self) -> bool:
        """End the machine and delete its drives and snapshots. Return whether it ran."""
        if not self.folder.exists():
            return False
        with self._lock:
            ran = self.running() is not None
            self._end()
        return ran

    def _start(self, extra: list[str], port: int, since: float) -> Running:
        """Start the machine's processes and return their record. They end with this process, and if
        this raises."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(opened(self.folder))
            monitor, qtest = (
                stack.enter_context(listening(self.folder / name)).fileno()
                for name in ("qmp.sock", "qtest.sock")
            )
            programs = []
            if self.topology.cmdqv is not None:
                device = stack.enter_context(listening(self.folder / "vfio-user.sock")).fileno()
                control = stack.enter_context(listening(self.control)).fileno()
                programs.append(self._silicon_program(device, control, folder))
            programs.append(self._qemu_program(monitor, qtest, folder, port, extra))
            return self._keep(programs, port, since)

    def _qemu_program(
        self, monitor: int, qtest: int, folder: int, port: int, extra: list[str]
    ) -> Program:
        """Return the machine's QEMU for the keeper. The arguments are descriptors of its listening
        sockets and of the machine's folder, its port for SSH, and more options."""
        tree = self.store.path(self._emulator) / "tree"
        host = self.store.path(self.host_disk)
        own = kernel.DEBUG_IMAGE if self.debug_kernel else kernel.IMAGE
        image = self.store.path(self._kernel) / (kernel.IMAGE if self.kernel else own)
        initrd = self.folder / "acpi.cpio"
        initrd.write_bytes(self.topology.acpi_cpio())
        self._write_known_hosts(host, port)
        arguments = [
            *images.emulator_command(tree),
            *("-name", f"hil-{self.name}", "-nodefaults", "-display", "none"),
            *("-run-with", "exit-with-parent=on"),
            *self.topology.arguments(tree, self._drives(), Path(within(folder, "vfio-user.sock"))),
            *("-kernel", str(image), "-initrd", str(initrd)),
            # A panic reboots at once (panic=-1), which most often ends this QEMU (-no-reboot):
            # every connection to the machine breaks, and whoever waits for it knows.
            "-append",
            "console=ttyAMA0 acpi=force root=/dev/vda rootfstype=erofs ro "
            f"init=/usr/lib/hil/init panic=-1 loglevel=4 {_NO_MOPS} "
            f"{_SNAPSHOT_SAFE if self.snapshots else ''} {self.topology.kernel_options()}".rstrip(),
            *("-drive", f"if=none,id=root,format=raw,readonly=on,file={host / 'root.erofs'}"),
            *("-device", "virtio-blk-pci,bus=pcie.0,drive=root"),
            *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
            *("-device", "virtio-net-pci,bus=pcie.0,netdev=net,romfile="),
            *("-device", "virtio-rng-pci,bus=pcie.0"),
            *("-chardev", f"file,id=console,path={self.console.path},append=on"),
            *("-serial", "chardev:console"),
            *("-chardev", f"socket,id=qmp,fd={monitor},server=on,wait=off"),
            *("-object", "monitor-qmp,id=mon.qmp,chardev=qmp"),
            *("-chardev", f"socket,id=qtest,fd={qtest},server=on,wait=off"),
            *("-qtest", "chardev:qtest", "-qtest-log", "none"),
            *extra,
        ]
        return Program(arguments, str(self._messages), [monitor, qtest, folder])

    def _silicon_program(self, device: int, control: int, folder: int) -> Program:
        """Return the CMDQV's process for the keeper. The arguments are descriptors of its listening
        sockets and of the machine's folder."""
        assert self.topology.cmdqv
        arguments = [
            *(sys.executable, "-m", "harness.virtual.silicon.process"),
            *("--vfio-user", str(device), "--control", str(control)),
            *("--qtest", within(folder, "qtest.sock")),
            *("--qmp", within(folder, "qmp.sock")),
            *("--smmu", hex(self.topology.smmu_nodes()[0].base)),
            *("--spi", str(CMDQV_SPI)),
            *("--parameters", json.dumps(asdict(self.topology.cmdqv))),
        ]
        return Program(arguments, str(self._silicon_messages), [device, control, folder])

    def _keep(self, programs: list[Program], port: int, since: float) -> Running:
        """Have a keeper start these programs, of which QEMU is the last, and return their
        record."""
        descriptors = {number for one in programs for number in one.descriptors}
        owner = os.pidfd_open(os.getpid())
        try:
            with self._messages.open("ab") as messages:
                process = subprocess.Popen(
                    [
                        *(sys.executable, "-I", "-S", keeper.__file__),
                        *(str(self.folder), str(owner), json.dumps(programs)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=messages,
                    pass_fds=[owner, *descriptors],
                    start_new_session=True,
                )
        finally:
            os.close(owner)
        assert process.stdout
        try:
            with process.stdout as output:
                told = output.readline() if wait([output.fileno()], _START_SECONDS) else b""
            if not told:
                raise LabError(
                    f"virtual host {self.name} was not started:\n"
                    f"{_tail(self._messages.read_text(errors='replace'))}",
                    fix=f"read {self._messages}",
                )
            state = Running(
                process=ProcessId.of(int(told)),
                keeper=ProcessId.of(process.pid),
                owner=ProcessId.mine(),
                port=port,
                since=since,
                booted=False,
                built_from=self._built_from(),
                kernel=self._kernel_words(),
            )
            state.write(self._state)
            self._port.write_text(f"{port}\n")
        except BaseException:
            # Without a record, for example after Ctrl-C or on a full disk, nobody would end it.
            process.terminate()
            process.wait()
            raise
        return state

    @property
    def control(self) -> Path:
        """Return the path of the control socket of the CMDQV's process."""
        return self.folder / "silicon.sock"

    def _end(self) -> None:
        """End the machine's processes, if they run, and remove what belongs to a running machine
        only."""
        record = Running.read(self._state)
        if record:
            record.end()
            self._await_end(record, record.gone)
        keeper.sweep(str(self.folder))

    def _await_end(self, record: Running, gone: Callable[[], bool]) -> None:
        name = f"the end of virtual host {self.name} (pid {record.process.pid})"
        wait_for(name, gone, deadline=10, interval=0.005)

    def _await_boot(self, state: Running) -> None:
        def booted() -> bool:
            console = self.console.text()
            if self.kernel:
                # It is under test: its death is the product's.
                LastWords(f"{self.name}, {self.kernel},", self.console).check(None)
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
        if not state.alive():
            said = self._messages.read_text(errors="replace")
            raise LabError(f"the QEMU of virtual host {self.name} ended:\n{_tail(said)}")

    def _with_disks(self) -> list[VirtualDevice]:
        return [device for device in self.topology.devices() if device.emulation.disk_bytes]

    def _disk(self, device: VirtualDevice) -> Path:
        return self.folder / f"{device.id}.img"

    def _drives(self) -> dict[str, Path]:
        return {device.id: self._disk(device) for device in self._with_disks()}

    def _last_port(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int(self._port.read_text())
        return None

    def _write_known_hosts(self, host: Path, port: int) -> None:
        key = (host / "host_key.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{port} {' '.join(key)}\n")

    # -- snapshots -------------------------------------------------------------------------

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """Yield the QMP monitor of the QEMU that emulates the host. Raises LabError."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            connect(sock, self.folder / "qmp.sock")
        except OSError as problem:
            sock.close()
            raise LabError(
                f"virtual host {self.name} has no monitor: {problem}",
                fix=f"run `hil lab up --host {self.name}`",
            ) from problem
        with Monitor.on(sock, self.name) as monitor:
            try:
                yield monitor
            except QmpRefusedError as refused:
                raise LabError(
                    f"the QEMU of virtual host {self.name} refuses: {refused.message}",
                    fix=f"run `hil lab down --host {self.name}`, and try again",
                ) from refused

    @property
    def _qtest(self) -> Path:
        return self.folder / "qtest.sock"

    def _silicon(self) -> SiliconClient | None:
        return SiliconClient(self.control) if self.topology.cmdqv else None

    def _unsaved(self) -> list[str]:
        """Return the PCI addresses, in QEMU, of what QEMU does not save."""
        devices = self.topology.devices()
        cmdqv = [CMDQV_BDF] if self.topology.cmdqv else []
        return cmdqv + [one.emulated_bdf for one in devices if not one.emulation.saved]

    @cached_property
    def lasting(self) -> LastingSnapshots:
        """Return the lasting snapshots that this machine can go on from."""
        # Each build of the disk has other keys for SSH, which a snapshot has in its memory.
        parts = self._built_from(), self.store.path(self.host_disk) / "host_key.pub"
        return LastingSnapshots(self.store.root, content_key(*parts, *_sources()))

    def _own(self, name: str) -> Snapshot:
        """Return a snapshot that goes with this machine. One that was saved by other sources is
        another one: the machine may stay up while they are edited."""
        return Snapshot(self.folder / "snapshots" / self.lasting.built / name)

    def has(self, name: str) -> bool:
        return self._own(name).complete or self.lasting.has(name)

    @contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Yield whether there is a snapshot; nobody removes it inside the context."""
        with self._found(name) as snapshot:
            yield snapshot is not None

    @contextmanager
    def _found(self, name: str) -> Iterator[Snapshot | None]:
        if self._own(name).complete:
            yield self._own(name)
            return
        with self.lasting.held(name) as snapshot:
            yield snapshot

    def save(self, name: str, note: str, *, lasting: bool = False) -> None:
        """Save a snapshot `name`; the machine runs on afterwards. A `lasting` one outlives this
        machine, and all that are built alike have it. Raises LabError, and HarnessError for a
        machine without snapshots."""
        if not self.snapshots:
            raise HarnessError(
                f"virtual host {self.name} has no snapshots: it would not wake up",
                fix="use a host that is not `plain`",
            )
        if lasting:
            self.lasting.make_room()
        drives = self._drives().values()
        saved = self._own(name)
        with self.progress.step(f"save snapshot {name}", 4):
            with self.monitor() as monitor:
                saved.save(*(monitor, self._qtest, drives, self._unsaved(), self._silicon(), note))
            if lasting:
                with disk.told_when_full(f"keeping snapshot {name}", self.store.root):
                    self.lasting.keep(saved)

    def discard(self, name: str) -> None:
        """Remove a snapshot, if there is one, for all machines that are built alike."""
        disk.remove(self._own(name).folder)
        self.lasting.discard(name)

    def restore(self, name: str) -> str:
        """Restore snapshot `name` and return its note. This cuts every connection to the host.
        Raises LabError when there is no such snapshot or the machine does not run."""
        with self._found(name) as snapshot, self._lock:
            if snapshot is None:
                raise LabError(
                    f"virtual host {self.name} has no snapshot {name}",
                    fix="repeat the command, which boots the guests then: another run, or "
                    "`hil lab prune`, has removed the snapshot just now",
                )
            before = self.running()
            if before is None:
                raise LabError(
                    f"virtual host {self.name} is not up",
                    fix=f"run `hil lab up --host {self.name}`",
                )
            # Its keeper goes on until there is another record, and cleans up if this process is
            # killed before.
            before.process.send(signal.SIGKILL)
            try:
                self._await_end(before, lambda: not before.alive())
                snapshot.restore_drives(self._drives().values())
                self.console.note(f"snapshot {name} is restored")
                state = self._start(["-incoming", "defer"], before.port, before.since)
                self._load(snapshot, state)
                self._ready(state, before.owner)
            except BaseException:
                self._end()
                raise
            return snapshot.note

    def _load(self, snapshot: Snapshot, state: Running) -> None:
        try:
            with self.monitor() as monitor:
                snapshot.load(
                    *(monitor, self._qtest, self._silicon(), lambda: self._check_alive(state))
                )
        except LabError:
            # A QEMU that fails closes its sockets a moment before it ends.
            with contextlib.suppress(LabError):
                wait_for("QEMU to end", lambda: not state.alive(), deadline=1)
            self._check_alive(state)
            raise


def _sources() -> list[Path]:
    """Return the sources of this project. They decide what runs inside a machine, what was done to
    it before it was saved, and what is kept beside the snapshot."""
    return sorted(Path(harness.__file__).parent.rglob("*.py"))


def _blank(drive: Path, size: int) -> None:
    with drive.open("wb") as file:
        file.truncate(size)


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join("  " + line for line in text.strip().splitlines()[-lines:])
