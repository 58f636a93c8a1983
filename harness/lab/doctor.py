"""Check whether this machine has what a lab needs of it: more for a virtual host, which is built
and run here, than for any other, which is reached by SSH only."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.artifacts import architecture, disk, parts, stack
from harness.artifacts.architecture import Architecture
from harness.artifacts.store import Store
from harness.errors import LabError
from harness.lab.inventory import HostEntry, MachineEntry
from harness.lab.provide import machine
from harness.progress import Progress
from harness.virtual.machine import recipes


@dataclass(frozen=True)
class Package:
    """The Debian package of a command or a file, and what it is needed for. `make setup` installs
    these packages."""

    name: str
    purpose: str


_PACKAGES, _UNPRIVILEGED = "unpacks Debian packages", "unpacks Debian packages without root"
_KERNEL, _GUEST = "builds the kernel", "builds the guests' program"
#: What every lab needs.
TOOLS = {
    "ssh": Package("openssh-client", "opens a shell: `hil lab ssh`, `--keep`"),
    "npm": Package("npm", "installs Allure, which makes reports"),
}
#: What virtual hosts are built with, besides the compiler for AArch64.
BUILD_TOOLS = {
    "mmdebstrap": Package("mmdebstrap", _PACKAGES),
    "fakeroot": Package("fakeroot", _UNPRIVILEGED),
    "fakechroot": Package("fakechroot", _UNPRIVILEGED),
    "make": Package("make", _KERNEL),
    "gcc": Package("gcc", _KERNEL),
    "bison": Package("bison", _KERNEL),
    "flex": Package("flex", _KERNEL),
    "bc": Package("bc", _KERNEL),
    "xz": Package("xz-utils", "unpacks the kernel's source"),
    "mkfs.erofs": Package("erofs-utils", "makes the virtual host's disk"),
    "ssh-keygen": Package("openssh-client", "makes the virtual host's keys"),
}
BUILD_FILES = {
    "/usr/include/openssl/ssl.h": Package("libssl-dev", _KERNEL),
    "/usr/include/libelf.h": Package("libelf-dev", _KERNEL),
    "/usr/share/keyrings/debian-archive-keyring.gpg": Package(
        "debian-archive-keyring", "verifies Debian packages"
    ),
}

#: Of this machine's memory, besides that of the virtual host: QEMU's own and the run's.
_OTHER_MEMORY = 1 << 30
#: The results of some runs: evidence and a report.
_RESULTS_BYTES = 1 << 30
#: The snapshots that tests use in turn, of some 400 MB each. With fewer, guests are booted more
#: often.
_SNAPSHOTS_BYTES = 6 << 30


@dataclass(frozen=True)
class Check:
    """One need: what it is, what it is for, whether it is met, and what to do if not."""

    what: str
    purpose: str
    met: bool
    fix: str


def checks(
    hosts: Sequence[HostEntry],
    store: Store,
    results: Path,
    places: Collection[MachineEntry] = (),
) -> Iterator[Check]:
    """Yield what these hosts of a lab need of this machine, in the order in which to meet what is
    not met. `results` is the folder of runs, and `places` what the inventory says of the places
    that the hosts may be."""
    yield Check(
        f"Python 3.11 or newer (this is {sys.version.split()[0]})",
        "runs the tests",
        sys.version_info >= (3, 11),
        "apt-get install python3",
    )
    if any(host.virtual for host in hosts):
        fits = architecture.name() in architecture.KNOWN
        yield Check(
            f"{architecture.NEEDED} (this is {architecture.name()})",
            "builds virtual hosts, and runs the QEMU that emulates them",
            fits,
            architecture.FIX,
        )
        if not fits:
            hosts = [host for host in hosts if not host.virtual]
    machines = [*hosts, *places]
    virtual = [host.virtual for host in hosts if host.virtual]
    commands, files = _tools(architecture.here()) if virtual else (TOOLS, {})
    if any(map(_by_ipmi, machines)):
        commands = commands | {"ipmitool": Package("ipmitool", "reaches BMCs by IPMI")}
    for command, package in commands.items():
        where = shutil.which(command)
        yield Check(
            f"{command} ({where or 'not in PATH'})", package.purpose, bool(where), _install(package)
        )
    for path, package in files.items():
        yield Check(path, package.purpose, Path(path).exists(), _install(package))
    if any(map(_by_redfish, machines)):
        yield _python("sushy", "reaches BMCs by Redfish", "redfish")
    if any(host.place or (host.power and host.power.pdu) for host in hosts):
        yield _python("labgrid", "asks a coordinator for hosts, and reaches PDUs", "labgrid")
    if virtual and not any(_runs(host, store) for host in hosts):
        wanted = max(one.memory_mib for one in virtual) * (1 << 20) + _OTHER_MEMORY
        free = psutil.virtual_memory().available
        yield Check(
            f"{disk.size(wanted)} of memory ({disk.size(free)} available)",
            "is the virtual host's memory; two hosts at a time need it twice",
            free >= wanted,
            "end other programs, or give the virtual host less memory: memory_mib in the inventory",
        )
    yield from _disks(hosts, store, results)


def _tools(here: Architecture) -> tuple[dict[str, Package], dict[str, Package]]:
    """Return the commands and the files that virtual hosts need on machines of an architecture."""
    compiler = Package(here.compiler, f"{_KERNEL} and the guests' program")
    return (
        TOOLS | BUILD_TOOLS | {f"{architecture.CROSS_COMPILE}gcc": compiler},
        BUILD_FILES | {here.libc_file: Package(here.libc, _GUEST)},
    )


def _by_ipmi(one: MachineEntry) -> bool:
    power, console = one.power, one.console
    bmc = one.bmc is not None and one.bmc.kind == "ipmi"
    return bool((power and power.ipmi) or (console and console.ipmi) or bmc)


def _by_redfish(one: MachineEntry) -> bool:
    bmc = one.bmc is not None and one.bmc.kind == "redfish"
    return bool((one.power and one.power.redfish) or bmc)


def _python(package: str, purpose: str, extra: str) -> Check:
    """Return the need of a Python package that is in an extra of ours."""
    return Check(
        f"the Python package {package}",
        purpose,
        importlib.util.find_spec(package) is not None,
        f"pip install 'grace-smmu-hil[{extra}]'",
    )


def _disks(hosts: Sequence[HostEntry], store: Store, results: Path) -> Iterator[Check]:
    try:
        disk.prepare(store.root)
    except LabError as problem:
        fix = problem.fix or ""
        yield Check(f"the cache: {problem.message}", "keeps what is built", False, fix)
    if any(host.virtual for host in hosts):
        known = stack.recorded(store.root) or parts.UNKNOWN
        every = recipes(known, store, Progress(enabled=False))
        missing = [one for one in every if not store.has(one)]
        wanted = sum(one.needs_bytes for one in missing)
        purpose = "keeps the virtual host's snapshots"
        if any("snapshot" in host.capabilities for host in hosts):
            wanted += _SNAPSHOTS_BYTES
        if missing:
            purpose = f"keeps what is to be built ({', '.join(one.name for one in missing)}), and "
            purpose += "snapshots"
        yield _space(
            "cache",
            store.root,
            wanted,
            purpose,
            "call `hil lab prune`, or set HIL_CACHE to a folder elsewhere",
        )
    yield _space(
        *(
            "results",
            results,
            _RESULTS_BYTES,
            "keeps what runs leave",
            "remove old runs: `hil runs prune`",
        )
    )


def _space(name: str, folder: Path, wanted: int, purpose: str, fix: str) -> Check:
    system = disk.FileSystem.of(folder)
    what = f"{disk.size(wanted)} of disk for the {name} {folder} ({system})"
    return Check(what, purpose, system.free >= wanted, fix)


def _runs(host: HostEntry, store: Store) -> bool:
    """Return whether a host is a virtual one that runs, and so has its memory."""
    vm = machine(host, store, Progress(enabled=False))
    return vm is not None and vm.running() is not None


def _install(package: Package) -> str:
    return f"apt-get install {package.name}"
