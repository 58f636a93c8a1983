"""Have a bare-metal host run another kernel for one run: kexec over SSH, and a reboot at the end.

Nothing of it persists: whatever resets the host, such as a panic or a power cycle, brings the
installed kernel back. While the host is ours the agent has an undo that reboots it, so that this
also happens when this program is killed. The kernel is known by a mark on its command line.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from harness.errors import HarnessError, HilError, LabError
from harness.host.connection import CommandFailedError, Connection
from harness.host.host import KEXEC_MARK, REBOOT, HostDescription
from harness.host.last_words import HostKernelError, LastWords
from harness.host.power import HostPower
from harness.host.session import Session
from harness.lab.reservation import waited
from harness.lab.software import HostKernel, Software
from harness.progress import Progress
from harness.waiting import wait_for

#: Longest that a host takes to come up: by kexec, which skips its firmware, and by a reboot, in
#: which a server tests its memory.
KEXEC_SECONDS, REBOOT_SECONDS = 300.0, 900.0
#: How long a host that can be restarted from outside is waited for before it is. One that is
#: restarted in the middle of its reboot only begins again.
POWERED_SECONDS = 300.0
#: After a panic the host reboots by itself, in so many seconds.
PANIC_SECONDS = 10
_ASK_SECONDS = 2.0
#: The file that tells that a folder of modules is ours.
_OURS = ".hil"

#: What the running kernel was told, without what only concerns its own boot or would be given
#: twice.
_COMMAND_LINE = (
    "tr ' ' '\\n' </proc/cmdline | "
    f"grep -vE '^(BOOT_IMAGE|initrd|panic|{KEXEC_MARK})=' | tr '\\n' ' '"
)
#: Arm the first watchdog for as long as it allows, up to five minutes: it runs on when it is closed
#: without a V. It resets a kernel that hangs before its own driver takes over. A host without one,
#: or where another program has it, goes without.
_ARM_WATCHDOG = """\
import fcntl, os, struct
try:
    watchdog = os.open("/dev/watchdog", os.O_WRONLY)
except OSError as problem:
    print(f"not armed: {problem.strerror}")
else:
    for seconds in (300, 60, 30):
        try:
            fcntl.ioctl(watchdog, 0xC0045706, struct.pack("i", seconds))  # WDIOC_SETTIMEOUT
            break
        except OSError:
            pass
    os.write(watchdog, b"\\0")
    print("armed")
"""


class _NotUpError(LabError):
    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            fix="restart the host by its BMC: it then runs its installed kernel. Its console tells "
            "how far the other one came; harness/guest/payload/kernel.config has what a host needs",
        )


class _NotBackError(LabError):
    def __init__(self, message: str) -> None:
        super().__init__(
            message, fix="restart the host by its BMC: it then runs its installed kernel"
        )


@dataclass(frozen=True)
class _Boot:
    """One boot of a host: its boot id, its kernel's release and command line."""

    id: str
    release: str
    command_line: str

    @classmethod
    def of(cls, link: Connection) -> _Boot:
        said = link.run("cat /proc/sys/kernel/random/boot_id; uname -r; cat /proc/cmdline").text
        return cls(*(line.strip() for line in said.splitlines()[:3]))

    def has(self, mark: str) -> bool:
        return mark in self.command_line.split()


@contextlib.contextmanager
def with_kernel(
    described: HostDescription, software: Software, progress: Progress
) -> Iterator[HostDescription]:
    """Yield the description of a host that runs the host kernel of `software`, if that has one. A
    virtual host has booted it. Raises what `booted` does."""
    if software.host_kernel is None or described.kernel is not None:
        yield described
    else:
        with booted(described, software.host_kernel, progress) as running:
            yield running


@contextlib.contextmanager
def booted(
    described: HostDescription, kernel: HostKernel, progress: Progress
) -> Iterator[HostDescription]:
    """Yield the description of a host that runs this kernel; the installed one is back afterwards.

    Waits for another run that has the host. Raises LabError if the host cannot do that or does not
    come back, and HostKernelError if the kernel dies while it boots, or hangs and the host's power
    control brings the installed one back.
    """
    image = kernel.image
    if image.release is None:
        raise HarnessError(
            f"--host-kernel: {image.path} has no release that can be read",
            fix="give the uncompressed file arch/arm64/boot/Image",
        )
    mark = f"{KEXEC_MARK}={secrets.token_hex(4)}"
    with Connection.to(described.target) as link:
        modules = f"/lib/modules/{image.release}"
        before = _Boot.of(link)
        gone, kept, power = "", False, described.power

        def keep() -> None:
            nonlocal kept
            kept = True

        def bring_back() -> None:
            _bring_back(link, described.name, before, gone, mark, modules, progress, power)

        try:
            words = LastWords(described.name, described.console)
            words.seen()
            with progress.step(f"boot kernel {image.release} on host {described.name}", 60):
                with _session(link, progress) as session:
                    _load(session, kernel, modules, mark)
                    gone = before.id
                    _go(session)
                _await(link, described.name, before, mark, image.release, words)
            yield replace(described, kernel=image, kexec_mark=mark, stay_up=keep)
        except _NotUpError as problem:
            if power is None:
                raise
            kept = True
            _interrupt(power, described.name, progress)
            bring_back()
            raise HostKernelError(
                f"kernel {image.release} did not come up on host {described.name}, which came back "
                f"with its installed kernel: {problem.message}"
            ) from problem
        finally:
            # What a person was left to look at is rebooted by the agent, when its time is over.
            if not kept:
                bring_back()


@contextlib.contextmanager
def _session(link: Connection, progress: Progress) -> Iterator[Session]:
    """Yield a session on the host, which nobody else has then. It ends if the body raises; else the
    body has seen to that."""
    found: list[Session] = []
    waited(lambda: found.append(Session.start(link)), progress)
    (session,) = found
    try:
        yield session
    except BaseException:
        # Whatever else is wrong, the first error tells more.
        with contextlib.suppress(HilError):
            session.end()
        raise


def _load(session: Session, kernel: HostKernel, modules: str, mark: str) -> None:
    """Copy the kernel to the host and have kexec load it. Raises LabError."""
    link, host = session.connection, session.connection.target.known_as
    if link.run("command -v kexec", check=False).status != 0:
        raise LabError(
            f"host {host} has no kexec", fix="install the package kexec-tools on the host"
        )
    session.on_end("the loaded kernel", "kexec -u")
    image, initrd = f"{session.folder}/Image", f"{session.folder}/initrd"
    link.write_file(image, kernel.image.path.read_bytes())
    options = [f"--kexec-syscall-auto -l {image}"]
    if kernel.initrd:
        link.write_file(initrd, kernel.initrd.read_bytes())
        options.append(f"--initrd={initrd}")
    if kernel.modules:
        _unpack(session, kernel, modules)
    command_line = f'"$({_COMMAND_LINE})panic={PANIC_SECONDS} {mark}"'
    try:
        link.run(f"kexec {' '.join(options)} --command-line={command_line}", timeout=60)
    except CommandFailedError as failed:
        raise LabError(
            f"host {host} cannot load kernel {kernel.image.path}: {failed.message}",
            fix="kexec needs CONFIG_KEXEC or CONFIG_KEXEC_FILE in the host's own kernel, and no "
            "lockdown (secure boot)",
        ) from failed


def _unpack(session: Session, kernel: HostKernel, modules: str) -> None:
    """Put the kernel's modules where the host's own are; a mark there tells that they are to be
    removed. Raises LabError if the host has modules of that release."""
    link, archive, folder = (
        session.connection,
        f"{session.folder}/modules.tar",
        shlex.quote(modules),
    )
    link.write_file(archive, kernel.module_files())
    try:
        link.run(
            f"if [ -e {folder} ] && [ ! -e {folder}/{_OURS} ]; then "
            f"echo {folder} is there already >&2; exit 1; fi\n"
            f"mkdir -p {folder} && touch {folder}/{_OURS} && tar -xf {archive} -C {folder} && "
            f"rm {archive} && depmod {shlex.quote(str(kernel.image.release))}",
            timeout=120,
        )
    except CommandFailedError as failed:
        raise LabError(
            f"host {link.target.known_as} cannot take the modules in {kernel.modules}: "
            f"{failed.message}",
            fix="give the kernel a release of its own (CONFIG_LOCALVERSION)",
        ) from failed


def _go(session: Session) -> None:
    """Leave the host's kernel for the one that is loaded."""
    script = (
        f"python3 -c {shlex.quote(_ARM_WATCHDOG)}; sync\n"
        "if [ -d /run/systemd/system ]; then exec systemctl kexec; else exec kexec -e; fi"
    )
    session.spawn("kexec", ["sh", "-c", script], log=f"{session.folder}/kexec.log")
    session.abandon()


def _await(
    link: Connection, name: str, before: _Boot, mark: str, release: str, words: LastWords
) -> None:
    """Wait until the host answers in another boot, which must be of our kernel."""
    seen = ""

    def up() -> _Boot | None:
        nonlocal seen
        words.check(None)
        try:
            boot = _Boot.of(link)
        except LabError as problem:
            seen = problem.message
            return None
        seen = f"kernel {boot.release} of before"
        return boot if boot.id != before.id else None

    boot = wait_for(
        f"host {name} to answer with kernel {release}",
        up,
        deadline=KEXEC_SECONDS,
        interval=_ASK_SECONDS,
        error=_NotUpError,
        last_seen=lambda: "\n".join(filter(None, (seen, words.latest()))),
    )
    if not boot.has(mark):
        raise HostKernelError(
            f"kernel {release} did not come up on host {name}: the host has rebooted, and runs "
            f"{boot.release}",
            fix="look at the host's console, or in /sys/fs/pstore: the kernel panicked, or hung "
            "until a watchdog reset the host; harness/guest/payload/kernel.config has what it "
            "needs",
        )


def _interrupt(power: HostPower, name: str, progress: Progress) -> None:
    """Send a host whose kernel hangs an NMI: it can then panic, tell where it was on its console,
    and reboot."""
    progress.note(f"host {name}: its kernel does not come up; it is sent an NMI")
    try:
        power.nmi()
    except LabError as problem:
        progress.note(f"host {name}: {problem.message}")


def _bring_back(
    link: Connection,
    name: str,
    before: _Boot,
    gone: str,
    mark: str,
    modules: str,
    progress: Progress,
    power: HostPower | None,
) -> None:
    """Reboot the host if it runs our kernel, or is still in the boot `gone`, which it was told to
    leave for that; wait until it is in another one. If it does not come back by itself, its power
    control restarts it. Remove our modules. Raises LabError if it does not come back."""
    seen = ""

    def back() -> _Boot | None:
        nonlocal seen
        try:
            boot = _Boot.of(link)
            if boot.has(mark) or boot.id == gone:
                seen = f"kernel {boot.release}"
                link.run(REBOOT)
                return None
        except LabError as problem:
            seen = problem.message
            return None
        return boot

    def come_back(deadline: float) -> _Boot:
        return wait_for(
            f"host {name} to come back with kernel {before.release}",
            back,
            deadline=deadline,
            interval=_ASK_SECONDS,
            error=_NotBackError,
            last_seen=lambda: seen,
        )

    with progress.step(f"reboot host {name} into its installed kernel", 120):
        try:
            boot = come_back(REBOOT_SECONDS if power is None else POWERED_SECONDS)
        except _NotBackError as problem:
            if power is None:
                raise
            progress.note(f"host {name}: {problem.message}; its power control restarts it")
            power.cycle()
            boot = come_back(REBOOT_SECONDS)
    link.run(f"if [ -e {shlex.quote(modules)}/{_OURS} ]; then rm -rf {shlex.quote(modules)}; fi")
    if boot.release != before.release:
        raise LabError(
            f"host {name} came back with kernel {boot.release}, and had {before.release} before",
            fix="look at the host's boot loader",
        )
