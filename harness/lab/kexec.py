"""Have a bare-metal host run another kernel for one run: kexec over SSH, and a reboot at the end.

Nothing of it persists: whatever resets the host, such as a panic or a power cycle, brings the
installed kernel back. While the host is ours the agent has an undo that reboots it, and one that
removes the kernel's modules, so that this also happens when this program is killed. The kernel is
known by a mark on its command line.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from harness.errors import HarnessError, HilError, LabError
from harness.host.connection import CommandFailedError, Connection
from harness.host.host import HostDescription
from harness.host.last_words import HostKernelError, LastWords
from harness.host.other_kernel import BROUGHT, KEXEC_MARK, MODULES, REBOOT, removal
from harness.host.session import ReservedError, Session
from harness.kernel_image import digest
from harness.lab.reservation import REBOOT_SECONDS, waited
from harness.lab.software import HostKernel, Software
from harness.progress import Progress
from harness.waiting import wait_for

#: Longest that a host takes to come up by kexec, which skips its firmware.
KEXEC_SECONDS = 300.0
#: How long a host that can be restarted from outside is waited for before it is. One that is
#: restarted in the middle of its reboot only begins again.
POWERED_SECONDS = 300.0
#: After a panic the host reboots by itself, in so many seconds.
PANIC_SECONDS = 10
_ASK_SECONDS = 2.0
#: What the running kernel was told, without what only concerns its own boot or would be given
#: twice.
_COMMAND_LINE = (
    "tr ' ' '\\n' </proc/cmdline | "
    f"grep -vE '^(BOOT_IMAGE|initrd|panic|{KEXEC_MARK})=' | tr '\\n' ' '"
)
_WATCHDOG = "/dev/watchdog"
#: This is there where systemd has to shut the host down.
_SYSTEMD = "/run/systemd/system"
#: Arm the first watchdog for as long as it allows, up to five minutes: it runs on when it is closed
#: without a V. It resets a kernel that hangs before its own driver takes over. A host without one,
#: or where another program has it, goes without.
_ARM_WATCHDOG = """\
import fcntl, os, struct, sys
try:
    watchdog = os.open(sys.argv[1], os.O_WRONLY)
except OSError as problem:
    sys.exit(f"no watchdog: {problem.strerror}")
for seconds in (300, 60, 30):
    try:
        fcntl.ioctl(watchdog, 0xC0045706, struct.pack("i", seconds))  # WDIOC_SETTIMEOUT
        break
    except OSError:
        pass
os.write(watchdog, b"\\0")
"""
#: Files in the session's folder: the host is leaving its kernel, or refuses to, and what was said.
_LEAVING, _REFUSED, _SAID = "leaving", "refused", "kexec.log"
#: Leave the host's kernel. A shutdown ends the agent, too, and none of its undos may then take away
#: what the host is about to boot. Its arguments: the session's folder, the watchdog, and what tells
#: of systemd.
_LEAVE = f"""\
cd "$1" || exit
python3 -c {shlex.quote(_ARM_WATCHDOG)} "$2" && armed=yes
sync
touch {_LEAVING}
if [ -d "$3" ]; then systemctl kexec; else kexec -e; fi && exit
rm {_LEAVING}
[ -z "$armed" ] || printf V >"$2"
touch {_REFUSED}"""


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

    Waits for another run that has the host. Raises LabError if the host cannot do that, does not
    leave its kernel, or does not come back, and HostKernelError if the kernel dies while it boots,
    or hangs and the host's power control brings the installed one back.
    """
    image, name = kernel.image, described.name
    if image.release is None:
        raise HarnessError(
            f"--host-kernel: {image.path} has no release that can be read",
            fix="give the uncompressed file arch/arm64/boot/Image",
        )
    journey: _Journey | None = None
    with Connection.to(described.target) as link:
        try:
            words = LastWords(name, described.console)
            words.seen()
            with progress.step(f"boot kernel {image.release} on host {name}", 60):
                with _session(link, progress) as session:
                    journey = _Journey(described, kernel, link, _Boot.of(link), session, progress)
                    journey.prepare()
                    journey.leave()
                journey.arrive(words)
            yield replace(described, kernel=image, kexec_mark=journey.mark, stay_up=journey.stay_up)
        except _NotUpError as problem:
            if described.power is None:
                raise
            assert journey
            journey.interrupt()
            journey.return_home()
            raise HostKernelError(
                f"kernel {image.release} did not come up on host {name}, which came back "
                f"with its installed kernel: {problem.message}"
            ) from problem
        finally:
            if journey:
                journey.return_home()


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


@dataclass
class _Journey:
    """A host's way to another kernel and back. Its session is the one in the installed kernel,
    whose boot is `before`. The host is `away` once it was told to leave that."""

    described: HostDescription
    kernel: HostKernel
    link: Connection
    before: _Boot
    session: Session
    progress: Progress
    mark: str = field(default_factory=lambda: f"{KEXEC_MARK}={secrets.token_hex(4)}")
    away: bool = False

    @property
    def _name(self) -> str:
        return self.described.name

    @property
    def _release(self) -> str:
        return str(self.kernel.image.release)

    def _unless_leaving(self, command: str) -> str:
        return f"[ -e {self.session.folder}/{_LEAVING} ] || {{ {command}; }}"

    # -- there -----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Copy the kernel to the host and have kexec load it. Raises LabError."""
        link, folder, given = self.link, self.session.folder, self.kernel
        if link.run("command -v kexec", check=False).status != 0:
            raise LabError(
                f"host {self._name} has no kexec", fix="install the package kexec-tools on the host"
            )
        image = given.image.path.read_bytes()
        if digest(image) != given.image.digest:
            raise LabError(
                f"{given.image.path} has changed since this run began",
                fix="repeat the command when the build of the kernel is done",
            )
        self.session.on_end("the loaded kernel", self._unless_leaving("kexec -u"))
        link.write_file(f"{folder}/Image", image)
        options = [f"--kexec-syscall-auto -l {folder}/Image"]
        if given.initrd:
            link.write_file(f"{folder}/initrd", given.initrd.read_bytes())
            options.append(f"--initrd={folder}/initrd")
        if given.modules:
            self._unpack()
        command_line = f'"$({_COMMAND_LINE})panic={PANIC_SECONDS} {self.mark}"'
        try:
            link.run(f"kexec {' '.join(options)} --command-line={command_line}", timeout=60)
        except CommandFailedError as failed:
            raise LabError(
                f"host {self._name} cannot load kernel {given.image.path}: {failed.message}",
                fix="kexec needs CONFIG_KEXEC or CONFIG_KEXEC_FILE in the host's own kernel, and "
                "no lockdown (secure boot)",
            ) from failed

    def _unpack(self) -> None:
        """Put the kernel's modules where the host's own are, in place of what a run that was killed
        has left there. Raises LabError if the host has modules of that release."""
        archive, release = f"{self.session.folder}/modules.tar", shlex.quote(self._release)
        folder, remove = f"{MODULES}/{release}", removal(release)
        self.link.write_file(archive, self.kernel.module_files())
        self.session.on_end("the modules", self._unless_leaving(remove))
        try:
            self.link.run(
                f"{remove}\n"
                f"[ ! -e {folder} ] || {{ echo {folder} is there already >&2; exit 1; }}\n"
                f"mkdir -p {folder} && touch {folder}/{BROUGHT} && tar -xf {archive} -C {folder} "
                f"&& rm {archive} && depmod {release}",
                timeout=120,
            )
        except CommandFailedError as failed:
            raise LabError(
                f"host {self._name} cannot take the modules in {self.kernel.modules}: "
                f"{failed.message}",
                fix="give the kernel a release of its own (CONFIG_LOCALVERSION)",
            ) from failed

    def leave(self) -> None:
        """Have the host leave its kernel for the one that is loaded."""
        folder = self.session.folder
        command = ["sh", "-c", _LEAVE, "hil", folder, _WATCHDOG, _SYSTEMD]
        self.away = True
        self.session.spawn("kexec", command, log=f"{folder}/{_SAID}")
        self.session.abandon()

    def arrive(self, words: LastWords) -> None:
        """Wait until the host answers in another boot, which must be of our kernel. Raises
        LabError if it stays in its old one, _NotUpError if it does not answer, and HostKernelError
        if the kernel has died."""
        seen, still_here = "", False

        def up() -> _Boot | None:
            nonlocal seen, still_here
            words.check(None)
            try:
                boot = _Boot.of(self.link)
                refused = self._refused() if boot.id == self.before.id else None
            except LabError as problem:
                seen, still_here = problem.message, False
                return None
            if boot.id != self.before.id:
                return boot
            if refused is not None:
                raise self._not_left(refused)
            seen, still_here = f"kernel {boot.release} of before", True
            return None

        try:
            boot = wait_for(
                f"host {self._name} to answer with kernel {self._release}",
                up,
                deadline=KEXEC_SECONDS,
                interval=_ASK_SECONDS,
                error=_NotUpError,
                last_seen=lambda: "\n".join(filter(None, (seen, words.latest()))),
            )
        except _NotUpError as problem:
            if not still_here:
                raise
            raise LabError(
                f"host {self._name} does not leave its installed kernel: {problem.message}",
                fix="look at what holds up its shutdown, for example by `systemctl list-jobs`",
            ) from problem
        if not boot.has(self.mark):
            raise HostKernelError(
                f"kernel {self._release} did not come up on host {self._name}: the host has "
                f"rebooted, and runs {boot.release}",
                fix="look at the host's console, or in /sys/fs/pstore: the kernel panicked, or "
                "hung until a watchdog reset the host; harness/guest/payload/kernel.config has "
                "what it needs",
            )

    def _refused(self) -> str | None:
        """Return what the host said when it refused to leave its kernel; None if it did not."""
        folder = self.session.folder
        said = self.link.run(f"cd {folder} && [ -e {_REFUSED} ] && cat {_SAID}", check=False)
        return said.text.strip() if said.status == 0 else None

    def _not_left(self, why: str) -> LabError:
        """Give back the host, which has refused to leave its kernel, and return the error."""
        self.away = False
        try:
            self.session.end()
        except HilError as problem:
            why += f"; then: {problem.message}"
        return LabError(
            f"host {self._name} refuses to leave its kernel for {self._release}: {why}",
            fix="look why `systemctl kexec`, or without systemd `kexec -e`, fails there",
        )

    # -- and back --------------------------------------------------------------------------

    def stay_up(self) -> None:
        """Leave the host to a person; the agent reboots it when its time is over."""
        self.away = False

    def interrupt(self) -> None:
        """Send a host whose kernel hangs an NMI: it can then panic, tell where it was on its
        console, and reboot."""
        assert self.described.power
        note = self.progress.note
        note(f"host {self._name}: its kernel does not come up; it is sent an NMI")
        try:
            self.described.power.nmi()
        except LabError as problem:
            note(f"host {self._name}: {problem.message}")

    def return_home(self) -> None:
        """Reboot a host that is away, if it runs our kernel or is still in the boot that it was
        told to leave; wait until it is in another one. If it does not come back by itself, its
        power control restarts it. Remove our modules. Raises LabError if it does not come back."""
        if not self.away:
            return
        self.away = False
        power = self.described.power
        with self.progress.step(f"reboot host {self._name} into its installed kernel", 120):
            try:
                boot = self._come_back(REBOOT_SECONDS if power is None else POWERED_SECONDS)
            except _NotBackError as problem:
                if power is None:
                    raise
                self.progress.note(
                    f"host {self._name}: {problem.message}; its power control restarts it"
                )
                power.cycle()
                boot = self._come_back(REBOOT_SECONDS)
            if self.kernel.modules:
                self._remove_modules()
        if boot.release != self.before.release:
            raise LabError(
                f"host {self._name} came back with kernel {boot.release}, and had "
                f"{self.before.release} before",
                fix="look at the host's boot loader",
            )

    def _come_back(self, deadline: float) -> _Boot:
        seen = ""

        def back() -> _Boot | None:
            nonlocal seen
            try:
                boot = _Boot.of(self.link)
                if boot.has(self.mark) or boot.id == self.before.id:
                    seen = f"kernel {boot.release}"
                    self.link.run(REBOOT)
                    return None
            except LabError as problem:
                seen = problem.message
                return None
            return boot

        return wait_for(
            f"host {self._name} to come back with kernel {self.before.release}",
            back,
            deadline=deadline,
            interval=_ASK_SECONDS,
            error=_NotBackError,
            last_seen=lambda: seen,
        )

    def _remove_modules(self) -> None:
        """Remove what no agent has removed: the kernel died. Whoever has the host by now may have
        brought modules of the same release."""
        with contextlib.suppress(ReservedError):
            session = Session.start(self.link)
            session.on_end("the modules", removal(shlex.quote(self._release)))
            session.end()
