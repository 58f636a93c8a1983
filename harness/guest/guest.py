"""Boot one guest and attach to it: its QEMU, under the lease of the host's session, with monitor,
console, port for much output, event queues and logs."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from importlib import resources

from harness.errors import HarnessError, HilError, LabError, ProductError
from harness.guest import description
from harness.guest.bulk import Bulk
from harness.guest.console import (
    CRASH,
    READY,
    Console,
    GuestCrashedError,
    GuestSilentError,
    Output,
    last_lines,
)
from harness.guest.death import death, ended_by
from harness.guest.description import AssignedDevice, Identity, Paths
from harness.guest.event_queue import EventQueue
from harness.guest.journal import Journal
from harness.host.ability import Need
from harness.host.connection import CommandFailedError
from harness.host.host import HostFiles
from harness.host.program import pack
from harness.host.session import ENDING_SECONDS, Session
from harness.host.tail import Tail
from harness.progress import Progress
from harness.qmp import Monitor
from harness.smmu import trace
from harness.smmu.trace import PropagatedEvent, Trace
from harness.steps import step
from harness.waiting import wait_for

BOOT_SECONDS = 90.0
#: The time between two looks at the UART of a guest that is not at its prompt yet.
_UART_SECONDS = 5.0
#: Our init prints this on the UART, with the reason, if it cannot work with the guest's kernel.
#: Then it ends QEMU.
_UNFIT = re.compile(r"~HIL-UNFIT~ (.+)")


class QemuRefusedError(ProductError):
    """QEMU ended before the guest ran; `said` is what it printed."""

    def __init__(self, said: str, status: int | None) -> None:
        super().__init__(f"QEMU ended with status {status} before the guest ran:\n{said}")
        self.said = said


class GuestUnfitError(LabError):
    """Our init cannot work with the guest's kernel; the message has init's reason."""


class Guest:
    """A running guest whose monitor, console and port for much output are connected."""

    def __init__(
        self,
        session: Session,
        identity: Identity,
        monitor: Monitor,
        console: Console,
        bulk: Bulk,
        journal: Journal,
    ) -> None:
        self.session = session
        self.identity = identity
        self.monitor = monitor
        self.console = console
        self.bulk = bulk
        self.paths = Paths(f"{session.folder}/{identity.name}")
        self.journal = journal

    @property
    def name(self) -> str:
        """Return the guest's name, which is unique on its host."""
        return self.identity.name

    @property
    def spec(self) -> description.GuestSpec:
        """Return the description that it was booted from."""
        return self.identity.spec

    @property
    def devices(self) -> tuple[AssignedDevice, ...]:
        """Return the devices that were chosen for it, plugged or not."""
        return self.identity.devices

    def device(self, need: Need, smmu: int | None = None) -> AssignedDevice:
        """Return the first device that was chosen for a need, plugged or not; only of SMMU number
        `smmu`, if given.

        Raises HarnessError if the guest has none.
        """
        for device in self.devices:
            if device.need == need and smmu in (None, device.smmu):
                return device
        needs = ", ".join(f"{device.id}: {device.need}" for device in self.devices)
        raise HarnessError(
            f"guest {self.name} was not described with a {need}; it has {needs or 'no device'}",
            fix="name what is needed of the device in the guest's description",
        )

    def run(
        self, command: str, *, timeout: float = 30.0, check: bool = True, what: str = ""
    ) -> Output:
        """Run a shell command in the guest as Console.run does. `what` is its purpose, for
        reports."""
        with self.journal.running(command, what):
            return self.console.run(command, timeout=timeout, check=check)

    def run_long(
        self, command: str, *, timeout: float = 60.0, check: bool = True, what: str = ""
    ) -> Output:
        """Run a shell command that prints much, as Bulk.run does: some megabytes a second. `what`
        is its purpose, for reports."""
        with self.journal.running(command, what):
            return self.bulk.run(command, timeout=timeout, check=check)

    def read_file(self, path: str, *, timeout: float = 60.0) -> bytes:
        """Return the content of a file in the guest. Raises as Bulk.run, GuestCommandError when it
        cannot be read."""
        return self.run_long(f"cat {shlex.quote(path)}", timeout=timeout).data

    def host_run(self, command: str | Sequence[str], *, check: bool = True) -> str:
        """Run a command on the guest's host; return what it printed. Raises as Connection.run."""
        return self.session.connection.run(command, check=check).text

    def host_file(self, path: str, *, offset: int = 0) -> str:
        """Return the text of a file on the guest's host, from byte `offset` on, or its last
        -`offset` bytes."""
        data = self.session.read_file(path, offset=offset)
        return data.decode(errors="replace")

    def host_tail(self, path: str, offset: int = 0) -> Tail:
        """Return a log on the guest's host, to be read as it grows, from byte `offset` on."""
        return Tail(self.session, path, offset)

    def host_file_size(self, path: str) -> int:
        """Return the size of a file on the guest's host, in bytes: an offset for later."""
        return self.session.file_size(path)

    def wait_ready(self, *, deadline: float = BOOT_SECONDS) -> None:
        """Wait until init has started the shell, after boot, reboot or kexec.

        Raises GuestCrashedError, GuestSilentError, LabError (console closed).
        """
        what = f"guest {self.name} to reach its prompt"
        started = time.monotonic()
        crashed = False
        while True:
            left = max(0.0, started + deadline - time.monotonic())
            try:
                self.console.wait_for(what, READY, min(_UART_SECONDS, left))
                return
            except GuestCrashedError as crash:
                # The report may have begun before there was a console: then its first lines, which
                # say what it was, are on the UART only.
                try:
                    uart = f"last on its UART:\n{last_lines(self.uart_text(), 60)}"
                except LabError as problem:  # the crash is the product's all the same
                    uart = f"its UART cannot be read: {problem.message}"
                raise GuestCrashedError(f"{crash.message}\n{uart}") from None
            except GuestSilentError:
                # A kernel that dies before it has a console reports that on the UART only.
                uart = self.uart_text()
                waited = time.monotonic() - started
                # The report of a crash takes a while; at the next look it is complete.
                if crashed or waited >= deadline:
                    last = (
                        f"last on its console:\n{self.console.tail()}\n"
                        f"last on its UART:\n{last_lines(uart, 60)}\n"
                        f"its CPUs: {self._program_counters()}"
                    )
                    if CRASH.search(uart):
                        raise GuestCrashedError(
                            f"the guest crashed before {what}; {last}"
                        ) from None
                    raise GuestSilentError(f"waited {waited:.0f} s for {what}; {last}") from None
                crashed = CRASH.search(uart) is not None

    def _program_counters(self) -> str:
        """Return where each CPU of the guest is, for who has its kernel's symbols."""
        try:
            said = self.monitor.human("info registers -a")
        except HilError as problem:  # it is silent all the same
            return problem.message
        return ", ".join(re.findall(r"^ *(PC=[0-9a-f]+)", said, re.MULTILINE)) or said

    # -- witnesses -------------------------------------------------------------------------

    @cached_property
    def _smmu_bases(self) -> list[int]:
        """Return the addresses of the SMMUs' registers, from QEMU's memory map, in the order of
        the SMMUs' ids."""
        found = re.findall(
            r"^\s*([0-9a-f]{16})-[0-9a-f]{16} \(prio \d+, i/o\): arm-smmuv3",
            self.monitor.human("info mtree"),
            re.MULTILINE,
        )
        return sorted({int(base, 16) for base in found})

    def event_queue(self, smmu: int = 0) -> EventQueue:
        """Return the event queue of SMMU number `smmu`. Raises ProductError if QEMU has no such
        SMMU."""
        bases = self._smmu_bases
        if smmu >= len(bases):
            raise ProductError(
                f"guest {self.name} was described with {len(self.spec.smmus)} SMMUs, and QEMU's "
                f"memory map has {len(bases)}"
            )
        scratch = f"{self.paths.folder}/queue.bin"
        return EventQueue(
            self.monitor,
            self.session,
            smmu,
            bases[smmu],
            scratch,
            self.journal,
            exact=self.identity.exact_events,
        )

    def kernel_log(self, containing: str = "") -> str:
        """Return the lines of the guest's dmesg that contain a fixed string; all by default."""
        # grep ends with status 1 if it finds no line.
        return self.run_long(f"dmesg | grep -F {shlex.quote(containing)} || [ $? = 1 ]").text

    def uart_text(self) -> str:
        """Return what firmware and early kernel have printed since QEMU started."""
        return _uart_text(self.session, self.paths)

    def trace_text(self, offset: int = 0) -> str:
        """Return QEMU's trace log from byte `offset` on, as text."""
        return self.host_file(self.paths.trace_log, offset=offset)

    def trace_size(self) -> int:
        """Return the current size of the trace log, in bytes: an offset for `trace` later."""
        return self.host_file_size(self.paths.trace_log)

    def trace(self, offset: int = 0) -> Trace:
        """Return what QEMU traced from byte `offset` of its log on."""
        return Trace.of(self.trace_text(offset))

    def wait_propagated(
        self, count: int, offset: int, *, deadline: float = 10.0
    ) -> list[PropagatedEvent]:
        """Wait until QEMU's trace shows at least `count` forwarded events since byte `offset`, and
        return all of them.

        It has to wait because QEMU writes the trace line after the record. Raises ProductError
        after `deadline` seconds.
        """
        seen: list[PropagatedEvent] = []
        tail = self.host_tail(self.paths.trace_log, offset)

        def enough() -> bool:
            seen.extend(trace.propagated(trace.parse(tail.lines())))
            return len(seen) >= count

        with step(f"wait for {count} forwarded events in QEMU's trace"):
            wait_for(
                f"{count} forwarded events in QEMU's trace",
                enough,
                deadline=deadline,
                error=ProductError,
                last_seen=lambda: f"{len(seen)} events",
            )
        return seen

    def qemu_messages(self) -> str:
        """Return what QEMU printed: its warnings and errors."""
        return self.host_file(self.paths.qemu_log)

    def qemu_pid(self) -> int:
        """Return the id of QEMU's process on the host."""
        pid = self.session.pid(self.name)
        if self.spec.boundary is None:
            return pid
        return int(self.host_run(["ps", "-o", "pid=", "--ppid", str(pid)]))

    def command_line(self) -> list[str]:
        """Return QEMU's argv."""
        return description.arguments(self.spec, self.devices, self.identity.files, self.paths)

    # -- end -------------------------------------------------------------------------------

    def kill(self) -> None:
        """End QEMU at once."""
        self.session.kill(self.name)


def boot(
    session: Session,
    name: str,
    spec: description.GuestSpec,
    devices: Sequence[AssignedDevice],
    files: HostFiles,
) -> None:
    """Start QEMU. The devices must be assigned already. `attach` then connects to the guest."""
    paths = Paths(f"{session.folder}/{name}")
    session.connection.run(f"rm -rf {paths.folder} && mkdir -p {paths.folder}")
    if spec.boundary:
        session.connection.write_file(paths.boundary, pack(spec.boundary.package))
    if spec.descriptors:
        opener = resources.files("harness.host").joinpath("open_files.py").read_bytes()
        session.connection.write_file(paths.opener, opener)
    qemu = description.arguments(spec, devices, files, paths)
    argv, sockets = description.launch(spec, qemu, paths)
    session.spawn(name, argv, log=paths.qemu_log, listen=sockets)


def _uart_text(session: Session, paths: Paths) -> str:
    try:
        log = session.read_file(paths.uart_log)
    except CommandFailedError:  # a QEMU that refused its command line has made no log
        return ""
    return log.decode(errors="replace").replace("\r", "")


@contextlib.contextmanager
def attach(session: Session, identity: Identity) -> Iterator[Guest]:
    """Connect to a guest's monitor, console and port; yield the guest, which runs on afterwards.

    Raises QemuRefusedError if QEMU has ended, GuestUnfitError if init cannot work with the guest's
    kernel, LabError if QEMU cannot be reached.
    """
    paths = Paths(f"{session.folder}/{identity.name}")
    journal = Journal()

    def connect(name: str) -> socket.socket:
        return session.connection.unix_socket(paths.sockets[name])

    with contextlib.ExitStack() as stack:
        try:
            console = stack.enter_context(Console.on(connect("console")))
            monitor = stack.enter_context(Monitor.on(connect("qmp"), identity.name))
            bulk = stack.enter_context(Bulk.on(console, partial(connect, "bulk"), journal.note))
        except LabError:
            raise_if_ended(session, identity)
            raise
        yield Guest(session, identity, monitor, console, bulk, journal)


def raise_if_ended(session: Session, identity: Identity) -> None:
    """Raise an error with the cause if a guest's QEMU has ended; else return.

    Raises GuestUnfitError if init could not work with the kernel, LabError if the boundary could
    not start QEMU, what `death` returns if a signal ended it, else QemuRefusedError with QEMU's
    messages.
    """
    name, boundary = identity.name, identity.spec.boundary is not None
    status = session.wait(name, ENDING_SECONDS)
    if status is None:
        return
    log = session.read_file(Paths(f"{session.folder}/{name}").qemu_log)
    said = log.decode(errors="replace").strip()
    unfit = _UNFIT.search(_uart_text(session, Paths(f"{session.folder}/{name}")))
    if unfit:
        raise GuestUnfitError(
            f"guest {name} cannot be used with this guest kernel: {unfit[1]}",
            fix="build it by `hil kernel build`, or see what `hil kernel config` says it lacks",
        )
    # The boundary's exit status on a host that cannot have one (sysexits.h).
    if status == os.EX_CONFIG:
        raise LabError(
            f"guest {name} cannot be started on {session.connection.target.known_as}: {said}",
            fix="run on another host, or leave out the tests that need the boundary",
        )
    if ended_by(status, boundary=boundary) is not None:
        raise death(session, identity, status) from None
    raise QemuRefusedError(said, status) from None


@contextlib.contextmanager
def booted(
    session: Session,
    name: str,
    spec: description.GuestSpec,
    devices: Sequence[AssignedDevice],
    files: HostFiles,
    progress: Progress,
) -> Iterator[Guest]:
    """Boot a guest, and yield it at its prompt, or before its first instruction if it is `paused`.

    The guest runs on when the context ends: the caller kills it, keeps it or saves it.
    """
    started = time.monotonic()
    with progress.step(f"boot guest {name}", 10):
        boot(session, name, spec, devices, files)
        identity = Identity(name, spec, tuple(devices), files, 0.0)
        with attach(session, identity) as guest:
            try:
                if not spec.paused:
                    guest.wait_ready()
            except LabError:
                raise_if_ended(session, identity)
                raise
            guest.identity = Identity(name, spec, tuple(devices), files, time.monotonic() - started)
            yield guest
