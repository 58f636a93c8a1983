"""One lab host, open for work: its SSH link, the session on it, its facts and capabilities."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from harness.errors import LabError
from harness.host import dmesg, huge_pages, pci, probed
from harness.host.ability import Ability
from harness.host.connection import CommandFailedError, Connection
from harness.host.failslab import FAILSLAB
from harness.host.other_kernel import KEXEC_MARK, REBOOT, removal
from harness.host.pci import PciDevice
from harness.host.power import HostPower
from harness.host.probes import TRACING
from harness.host.session import Session
from harness.host.target import Target
from harness.kernel_image import KernelImage, digest
from harness.smmu import iort

#: The capability of a host whose SMMUs merge no events and leave no field of a record UNKNOWN: its
#: records can be compared bit by bit.
EXACT_EVENTS = "exact-events"
#: The capabilities of a host that are sizes: it has `cpus:8`. A test may need `cpus>=4`.
SIZES = frozenset({"cpus", "memory-mib"})
_SIZES = """\
echo cpus:$(nproc)
echo memory-mib:$(($(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo) / 1024))"""
#: Where a host's kernel shows the IO Remapping Table that it uses.
IORT = "/sys/firmware/acpi/tables/IORT"
#: The file by which QEMU uses iommufd. Where that is a module, as in distributions' kernels, it is
#: there once the module is loaded, which nothing else does before the first guest.
IOMMUFD = "/dev/iommu"
#: The first version with accel=on and a vEVENTQ.
OLDEST_QEMU = (11, 1)


class Kind(Protocol):
    """What a host and its guests must know of a kind of assignable device (harness.devices)."""

    @property
    def role(self) -> str: ...

    @property
    def can(self) -> frozenset[Ability]:
        """Return what devices of this kind can do for a test."""

    @property
    def rank(self) -> int:
        """Return the kind's place when several kinds can do what a test needs: the lowest rank is
        taken first."""

    @property
    def ready(self) -> str:
        """Return the shell condition that holds once a guest has the device ready: see
        harness.guest.description.AssignedDevice."""

    def matches(self, found: PciDevice) -> bool:
        """Return whether a device of the host is of this kind."""


class Snapshots(Protocol):
    """The snapshots of a host that can be saved and restored as a whole, including its memory.
    Lasting ones may be of an earlier boot, and of another host that is built alike. A `note` is
    text that is kept with a snapshot."""

    def has(self, name: str) -> bool: ...

    def held(self, name: str) -> contextlib.AbstractContextManager[bool]:
        """Keep a snapshot from being removed inside the context. Yield whether it is there."""

    def save(self, name: str, note: str, *, lasting: bool = False) -> None:
        """Save a snapshot. One that is not `lasting` is removed when the host goes down."""

    def restore(self, name: str) -> str: ...
    def discard(self, name: str) -> None: ...


class Silicon(Protocol):
    """What a model of the CMDQV can do and hardware cannot."""

    def inject(self, vintf: int, lvcmdq: int, error: int) -> None:
        """Make the next command of a queue fail with `error` (CMDQ_CONS.ERR)."""

    def invalidate(self, on: bool) -> None:
        """Let guests' commands reach the SMMU, or withhold them from it when `on` is False."""

    def commands(self, since: int = 0) -> list[tuple[int, int, int, int]]:
        """Return the commands of guest-owned queues that were carried out, without the first
        `since`: VINTF, LVCMDQ, and the command's two 64-bit words."""

    def count(self) -> int:
        """Return how many commands of guest-owned queues were carried out."""

    def issued(self, since: int = 0) -> list[tuple[int, int, int, int]]:
        """Return what the SMMU got for the commands that `commands` returns: VINTF and LVCMDQ that
        a command came from, and the two words that the SMMU got."""

    def leave_dirty(self) -> int:
        """Have all queues that no guest has look as if their last owner had died amid an error.
        Return how many these are."""


class HostConsole(Protocol):
    """What a host prints on its console, which also tells the last words of a host that died. To
    read it takes no connection to the host."""

    @property
    def lag(self) -> float:
        """Return how long after it was printed something may come to this machine, in seconds."""

    def text(self) -> str:
        """Return what the host has printed: since the recording began, or, if there is a file for
        each boot, in its current or last one. The text only grows, until a boot has another file.
        A restored snapshot goes on with the same one."""

    def last_boot(self) -> str:
        """Return what the host printed in the boot before that; nothing if there was none, or if
        the text goes on through boots."""

    def stamped(self) -> str:
        """Return the text with the time before each line, as harness.console.stamps has it, if it
        is known."""


@dataclass(frozen=True)
class HostFiles:
    """The files that guests are started from. Paths are on the host."""

    qemu: str
    firmware: str
    guest_kernel: str
    guest_initrd: str
    small_queues_kernel: str | None = None
    #: The folder with the kernel's own tests (tools/testing/selftests in Linux).
    selftests: str | None = None
    #: What the firmware finds in the second flash, in a file of the flash's size; None if that is
    #: empty.
    firmware_variables: str | None = None


def probes(files: HostFiles) -> dict[str, str]:
    """Return the capabilities that only a host itself can tell, each with the shell condition that
    holds on a host that has it."""
    found = {
        "kvm": "test -e /dev/kvm",
        # A host may have one that its kernel does not drive, or without interrupt: neither holds.
        "cmdqv": "grep -q tegra241-cmdqv /proc/interrupts",
        "no-cmdqv": "! ls /sys/bus/acpi/devices | grep -q NVDA200C",
        "kprobe": f"test -w {TRACING}/kprobe_events",
        "huge-pages": f"test -w {huge_pages.SETTING}",
        "slab-poisoning": "grep -q 1 /sys/kernel/slab/kmalloc-*/poison",
        "iommufd-test": "test -d /sys/kernel/debug/fail_iommufd",
        "failslab": f"test -w {FAILSLAB}/probability",
    }
    if files.selftests:
        found["selftests"] = f"test -x {shlex.quote(files.selftests)}/iommufd"
    if files.small_queues_kernel:
        found["small-queues"] = f"test -r {shlex.quote(files.small_queues_kernel)}"
    return found


@dataclass(frozen=True)
class Upload:
    """A file of this machine to use in place of the host's own; `field` is that of HostFiles."""

    field: str
    path: Path

    @property
    def is_program(self) -> bool:
        """Return whether the host runs the file."""
        return self.field == "qemu"


@dataclass(frozen=True)
class HostDescription:
    """All that is known of a host before it is reached. `devices` maps PCI addresses to kinds, and
    `vfio_drivers` to the vfio drivers that are not to be those which the host's kernel offers."""

    name: str
    target: Target
    files: HostFiles
    devices: Mapping[str, Kind] = field(default_factory=dict)
    vfio_drivers: Mapping[str, str] = field(default_factory=dict)
    snapshots: Snapshots | None = None
    silicon: Silicon | None = None
    #: None if nobody records what the host prints.
    console: HostConsole | None = None
    #: None if nothing controls the host's power.
    power: HostPower | None = None
    #: The capabilities that cannot be probed.
    capabilities: frozenset[str] = frozenset()
    #: The kernel that the host runs in place of its own; and the mark on its command line if the
    #: host was brought to that by kexec, and is to be rebooted.
    kernel: KernelImage | None = None
    kexec_mark: str | None = None
    #: Call this to keep the host up after this run; None if it stays up anyway.
    stay_up: Callable[[], None] | None = None


@dataclass(frozen=True)
class Facts:
    """What probing found out about a host: kernel releases, QEMU's version, capabilities; and of
    each file that guests are started from path, size and time of its last change, by its field of
    HostFiles."""

    host_kernel: str
    qemu: str
    guest_kernel: str
    capabilities: frozenset[str]
    files: Mapping[str, str] = field(default_factory=dict)


class Host:
    """An open host. `restore` replaces its session and reconnects: keep a reference to the host,
    not to its session."""

    def __init__(self, description: HostDescription) -> None:
        self.description = description
        self.files = description.files
        self.connection = Connection(description.target)
        self.session: Session
        self.facts: Facts
        self.devices: dict[str, PciDevice] = {}
        #: The digests of what is tested in place of the host's own, by its field of HostFiles, and
        #: of the host's kernel as `host_kernel`.
        self.digests: dict[str, str] = self._own_digests()
        self._iort = b""
        self._copied: list[str] = []
        self._kept = False

    @classmethod
    @contextlib.contextmanager
    def open(cls, description: HostDescription, uploads: tuple[Upload, ...] = ()) -> Iterator[Host]:
        """Connect to a host, reserve and probe it, and yield it. Raises LabError for whatever makes
        the host unusable."""
        host = cls(description)
        try:
            host.session = Session.start(host.connection)
            try:
                host._check_boot()
                host.take(uploads)
                yield host
            finally:
                if host._kept:
                    host.session.abandon()
                else:
                    host.session.end()
        finally:
            host.connection.close()

    @classmethod
    def look(cls, description: HostDescription) -> Facts:
        """Return a host's facts without a session: whoever has the host does not notice. Raises
        LabError."""
        host = cls(description)
        try:
            return host._facts()
        finally:
            host.connection.close()

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def capabilities(self) -> frozenset[str]:
        return self.facts.capabilities

    @property
    def console(self) -> HostConsole | None:
        """Return the host's console; None if nobody records it."""
        return self.description.console

    @property
    def versions_of_files(self) -> dict[str, str]:
        """Return what tells each file that guests are started from, by its field of HostFiles, from
        others that were or will be there: the digest of one that was taken, else path, size and
        time of its last change."""
        taken = {name: one for name, one in self.digests.items() if hasattr(self.files, name)}
        return {**self.facts.files, **taken}

    def role(self, bdf: str) -> str:
        return self.description.devices[bdf].role

    def stream_id(self, bdf: str) -> int:
        """Return the StreamID by which the host's SMMU knows one of the host's `devices`. Raises
        LabError if the host's tables give it none."""
        device = self.devices[bdf]
        try:
            return iort.stream_id(self._iort, device.segment, device.requester_id)
        except ValueError as problem:
            raise LabError(
                f"host {self.name}: device {bdf} has no StreamID: {problem}",
                fix=f"compare `iasl -d` of the host's {IORT} with the device's address: it must "
                "be behind an SMMUv3",
            ) from None

    def assign(self, bdfs: Sequence[str]) -> None:
        """Bind devices to their vfio drivers as `pci.assign` does. Those that this session has
        assigned already stay as they are, and whether they are in use is not looked at again: see
        `refuse_used`. Raises LabError."""
        held = pci.held(self.session, bdfs)
        others = [bdf for bdf in bdfs if bdf not in held]
        if others:
            pci.assign(self.session, others, self.description.vfio_drivers)

    def refuse_used(self, bdfs: Sequence[str]) -> None:
        """Raise LabError if something uses one of these devices."""
        if bdfs:
            pci.refuse_used(self.session, bdfs)

    def kernel_log(self, after: float = -math.inf) -> str:
        """Return the host's dmesg, or only the lines that came `after` a time that
        `kernel_log_time` gave. A position would not do: a full log drops older lines as newer ones
        come."""
        return dmesg.after(self.connection.run("dmesg").text, after)

    def kernel_log_time(self) -> float:
        """Return the time of the kernel log's last line, in seconds since the host's boot."""
        return dmesg.last_time(self.connection.run("dmesg").text)

    @property
    def ends_with_run(self) -> bool:
        """Return whether the host goes down when this run ends."""
        return self.description.stay_up is not None

    def keep(self, seconds: float) -> None:
        """Leave everything running for a person to look at: closing the host then ends nothing;
        all ends when `seconds` have passed."""
        self._kept = True
        self.session.set_lease(seconds)
        if self.description.stay_up:
            self.description.stay_up()

    # -- opening ---------------------------------------------------------------------------

    def _check_boot(self) -> None:
        """Have a host that runs a kernel by kexec reboot when the session ends, however it ends.
        Raises LabError if that kernel is not the one of this run."""
        line = self.connection.run(["cat", "/proc/cmdline"]).text.split()
        found = next((word for word in line if word.startswith(f"{KEXEC_MARK}=")), None)
        if found:
            self.session.on_end("the installed kernel", REBOOT)
            self.session.on_end("the modules of this one", removal("$(uname -r)"))
        if found == self.description.kexec_mark:
            return
        if found:
            raise LabError(
                f"host {self.name} runs a kernel that a run has booted by kexec and has left; the "
                "host is rebooted now",
                fix="try again in some minutes",
            )
        raise LabError(
            f"host {self.name} has rebooted, and does not run the given kernel any more",
            fix="look at the host's console, or in /sys/fs/pstore, for what its kernel died of",
        )

    def take(self, uploads: tuple[Upload, ...]) -> None:
        """Use these files of this machine from now on, and none else, in place of the host's own.
        Guests that run go on with what they were started with. Raises LabError for whatever makes
        the host unusable."""
        if self._copied:
            # Each may have some 100 MB, and is in the host's memory.
            self.connection.run(["rm", "-f", *self._copied])
            self._copied.clear()
        self.files = self.description.files
        self.digests = self._own_digests()
        self._receive(uploads)
        self.facts = self._probe()

    def _own_digests(self) -> dict[str, str]:
        kernel = self.description.kernel
        return {"host_kernel": kernel.digest} if kernel else {}

    def _receive(self, uploads: tuple[Upload, ...]) -> None:
        for upload in uploads:
            content = upload.path.read_bytes()
            self.digests[upload.field] = digest(content)
            folder = self.session.programs() if upload.is_program else self.session.folder
            target = f"{folder}/{upload.field}-{self.digests[upload.field]}"
            self._copied.append(target)
            self.connection.write_file(target, content, mode=0o755)
            self.files = replace(self.files, **{upload.field: target})

    def _probe(self) -> Facts:
        """Return the host's facts, and read what may change while it is up. Raises LabError."""
        facts = self._facts()
        self._iort = self._read_iort()
        self.devices = pci.describe(self.session, sorted(self.description.devices))
        for bdf, device in self.devices.items():
            self._check_kind(device, self.description.devices[bdf])
        return facts

    def _facts(self) -> Facts:
        """Return the host's facts, as they are known since its boot. Raises LabError."""
        paths = [one for one in astuple(self.files) if one]
        about = sorted(probes(self.files).items()), OLDEST_QEMU, "versions of files"
        found = probed.remembered(self.connection, paths, about, self._look)
        capabilities = {f"device:{kind.role}" for kind in self.description.devices.values()}
        capabilities |= {*found["capabilities"], *self.description.capabilities}
        capabilities |= {"snapshot"} if self.description.snapshots else set()
        return Facts(
            *(found["host_kernel"], found["qemu"], found["guest_kernel"]),
            frozenset(capabilities),
            found["files"],
        )

    def _look(self) -> dict[str, Any]:
        """Probe the host. Return its facts, the capabilities without those that the inventory
        tells. Raises LabError for whatever makes the host unusable."""
        where = f"host {self.name}"
        for what, path in (
            ("firmware", self.files.firmware),
            ("guest_kernel", self.files.guest_kernel),
            ("guest_initrd", self.files.guest_initrd),
        ):
            if self.connection.run(["test", "-r", path], check=False).status != 0:
                raise LabError(
                    f"{where} has no {what} {path}", fix=f"correct `{what}` in the inventory"
                )
        kernel = self.connection.run("uname -r").text.strip()
        there = f"test -e {IOMMUFD}"
        load = f"{there} || {{ modprobe iommufd; {there}; }}"
        if self.connection.run(load, check=False).status != 0:
            raise LabError(
                f"{where}: kernel {kernel} offers no {IOMMUFD}",
                fix="boot a kernel with CONFIG_IOMMUFD and CONFIG_ARM_SMMU_V3_IOMMUFD",
            )
        asked = [
            f"if ( {condition} ) >/dev/null 2>&1; then echo {name}; fi"
            for name, condition in probes(self.files).items()
        ]
        capabilities = self.connection.run("\n".join([*asked, _SIZES])).text.split()
        return {
            "host_kernel": kernel,
            "qemu": self._qemu_version(),
            "guest_kernel": self._guest_kernel(),
            "capabilities": capabilities,
            "files": self._versions(),
        }

    def _versions(self) -> dict[str, str]:
        """Return path, size and time of the last change of the files that guests are started from,
        by their fields of HostFiles."""
        files = {name: path for name, path in asdict(self.files).items() if path}
        asked = [
            f'stat -Lc "%n %s %Y" -- "$(command -v {path} || echo {path})" 2>&1 || true'
            for path in map(shlex.quote, files.values())
        ]
        return dict(
            zip(files, self.connection.run("\n".join(asked)).text.splitlines(), strict=True)
        )

    def _read_iort(self) -> bytes:
        try:
            return self.connection.read_file(IORT)
        except CommandFailedError as failed:
            raise LabError(
                f"host {self.name} has no readable {IORT}: {failed.message}",
                fix="boot the host's kernel with ACPI, and log in as root",
            ) from failed

    def _guest_kernel(self) -> str:
        """Return the release of the guests' kernel, from the banner in its Image; the Image's path
        when it has no readable banner."""
        search = ["grep", "-aom1", "Linux version [^ ]*", self.files.guest_kernel]
        banner = self.connection.run(search, check=False).text.split()
        return banner[-1] if banner else self.files.guest_kernel

    def _qemu_version(self) -> str:
        asked = self.connection.run([self.files.qemu, "--version"], check=False)
        found = re.search(r"version (\d+)\.(\d+)\S*(?: \(.*?\))?", asked.text)
        if asked.status != 0 or not found:
            raise LabError(
                f"host {self.name} has no working QEMU at {self.files.qemu}: "
                f"{asked.stderr.decode(errors='replace').strip()}",
                fix="correct `qemu` in the inventory, or give --qemu",
            )
        if (int(found[1]), int(found[2])) < OLDEST_QEMU:
            raise LabError(
                f"host {self.name}: {self.files.qemu} is {found[0]}; accel=on with event queues "
                f"needs {'.'.join(map(str, OLDEST_QEMU))} or newer",
                fix="install a newer QEMU and name it in the inventory, or give --qemu",
            )
        return found[0].removeprefix("version ")

    def _check_kind(self, device: PciDevice, kind: Kind) -> None:
        if not kind.matches(device):
            raise LabError(
                f"host {self.name}: {device.bdf} is {device.vendor:04x}:{device.device:04x}, "
                f"not a device of the role {kind.role}",
                fix="correct this device's `role` or `bdf` in the inventory",
            )

    # -- snapshots -------------------------------------------------------------------------

    @property
    def snapshots(self) -> Snapshots:
        if self.description.snapshots is None:
            raise LabError(
                f"host {self.name} has no snapshots",
                fix="check for the capability `snapshot` before saving or restoring",
            )
        return self.description.snapshots

    def save(self, name: str, note: str, *, lasting: bool = False) -> None:
        """Save a snapshot of the host. All connections to its guests must be closed before."""
        # sshd has closed its ends of those connections once it has answered a later command.
        self.connection.run("true")
        saved = {"session": self.session.name, "lease": self.session.lease, "note": note}
        words = json.dumps({**saved, "files": asdict(self.files)})
        self.snapshots.save(name, words, lasting=lasting)

    def restore(self, name: str) -> str:
        """Restore a snapshot and take over the session inside it, with the files that it had taken.
        Return the note that was saved with it. Raises LabError."""
        self.session.abandon()
        self.connection.close()
        saved = json.loads(self.snapshots.restore(name))
        self.session = Session.adopt(self.connection, saved["session"], saved["lease"])
        self.files = HostFiles(**saved["files"])
        return str(saved["note"])
