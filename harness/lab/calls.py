"""Check what a call of pytest or `hil` names: an inventory, a host, software, the cache. Nothing is
built, reserved or reached for that. What is wrong is told with the option and how to correct it."""

from __future__ import annotations

from pathlib import Path

from harness.artifacts.store import Store
from harness.errors import HarnessError, LabError
from harness.lab import inventory as inventories
from harness.lab.inventory import HostEntry, Inventory

#: The bytes from which a file's kind is told.
_HEAD = 64


def inventory(path: Path) -> Inventory:
    """Return the inventory that `--lab` names. Raises HarnessError for a file that cannot be read,
    or is no inventory, with every fault that it has."""
    try:
        return inventories.load(path)
    except LabError as problem:
        raise HarnessError(f"--lab: {problem.message}", fix=problem.fix) from None


def host(lab: Inventory, name: str | None) -> HostEntry:
    """Return the host that `--host` names, the first one without a name. Raises HarnessError, which
    lists the names."""
    try:
        return lab.host(name)
    except LabError as problem:
        raise HarnessError(f"--host: {problem.message}", fix=problem.fix) from None


def check_software(qemu: str | None, guest_kernel: str | None) -> None:
    """Check the files of this machine that `--qemu` and `--guest-kernel` name. Raises
    HarnessError. A path on the host, host:PATH, is checked when the host is open."""
    if qemu is not None and not qemu.startswith("host:"):
        head = _head("--qemu", qemu)
        if not head.startswith((b"\x7fELF", b"#!")):
            raise HarnessError(
                f"--qemu: {qemu} is no program",
                fix="name the file qemu-system-aarch64 that a build of QEMU made",
            )
    if guest_kernel is not None and not guest_kernel.startswith("host:"):
        head = _head("--guest-kernel", guest_kernel)
        if not _is_kernel(head):
            raise HarnessError(
                f"--guest-kernel: {guest_kernel} is no kernel for arm64",
                fix="name the file arch/arm64/boot/Image that a build of the kernel made",
            )


def _head(option: str, name: str) -> bytes:
    """Return the first bytes of a file."""
    path = Path(name)
    fix = "name a file of this machine, or host:PATH for one on the host"
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file"
        why = f"{name} {what}" if path.exists() else f"no file {name} on this machine"
        raise HarnessError(f"{option}: {why}", fix=fix)
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as problem:
        raise HarnessError(f"{option}: {name}: {problem.strerror}", fix=fix) from None


def _is_kernel(head: bytes) -> bool:
    """Return whether a file begins as a kernel that QEMU boots: an Image (Linux,
    Documentation/arch/arm64/booting.rst), one that unpacks itself (zboot-header.S), or one that is
    packed by gzip."""
    return head[56:60] == b"ARM\x64" or head[4:8] == b"zimg" or head.startswith(b"\x1f\x8b")


def store() -> Store:
    """Return the cache. Raises HarnessError if its folder cannot be made."""
    cache = Store()
    try:
        cache.root.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise HarnessError(
            f"the cache's folder {cache.root} cannot be made: {problem.strerror}",
            fix="set HIL_CACHE to a folder that you may write to",
        ) from None
    return cache
