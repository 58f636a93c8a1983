"""The software to test in place of a host's own: QEMU, the guests' kernel, the host's kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from harness import kernel_image
from harness.errors import HarnessError
from harness.host.host import HostDescription, Upload
from harness.kernel_image import KernelImage
from harness.lab.inventory import HostEntry

_ON_HOST = "host:"
_OR_ON_HOST = f", or {_ON_HOST}PATH for one on the host"


@dataclass(frozen=True)
class Software:
    """What is under test. None leaves the host's own.

    `qemu` and `guest_kernel` are each a file of this machine, which is copied to the host, or
    host:PATH. The host itself runs `host_kernel`.
    """

    qemu: str | None = None
    guest_kernel: str | None = None
    host_kernel: KernelImage | None = None

    @classmethod
    def named(
        cls, qemu: str | None, guest_kernel: str | None, host_kernel: Path | None
    ) -> Software:
        """Return the software that the options `--qemu`, `--guest-kernel` and `--host-kernel` name.
        Raises HarnessError for a file of this machine that is not what it should be; a path on the
        host is checked when the host is open."""
        if qemu is not None and not qemu.startswith(_ON_HOST):
            _check_program("--qemu", qemu)
        if guest_kernel is not None and not guest_kernel.startswith(_ON_HOST):
            _check_kernel("--guest-kernel", guest_kernel)
        return cls(qemu, guest_kernel, _kernel(host_kernel))

    def check(self, entry: HostEntry) -> None:
        """Raise HarnessError if a host cannot run the host kernel."""
        if self.host_kernel is not None and entry.virtual is None:
            raise HarnessError(
                f"--host-kernel: host {entry.name} is not a virtual one: it runs the kernel that "
                "is installed there",
                fix="choose a virtual host with --host or --lab, or install the kernel there",
            )

    def applied(self, described: HostDescription) -> tuple[HostDescription, tuple[Upload, ...]]:
        """Return the host with this QEMU and guest kernel, and the files to copy there."""
        files, uploads = described.files, []
        for which, value in (("qemu", self.qemu), ("guest_kernel", self.guest_kernel)):
            if value is None:
                continue
            if value.startswith(_ON_HOST):
                files = replace(files, **{which: value.removeprefix(_ON_HOST)})
            else:
                uploads.append(Upload(which, Path(value)))
        return replace(described, files=files), tuple(uploads)


def _kernel(path: Path | None) -> KernelImage | None:
    """Return the host's kernel, if one is given."""
    if path is None:
        return None
    _check_kernel("--host-kernel", str(path), on_host="")
    try:
        return KernelImage.read(path)
    except OSError as problem:
        raise HarnessError(f"--host-kernel: {path}: {problem.strerror}") from None


def _check_program(option: str, name: str) -> None:
    if not _head(option, name).startswith((b"\x7fELF", b"#!")):
        raise HarnessError(
            f"{option}: {name} is no program",
            fix="name the file qemu-system-aarch64 that a build of QEMU made",
        )


def _check_kernel(option: str, name: str, *, on_host: str = _OR_ON_HOST) -> None:
    if not kernel_image.is_kernel(_head(option, name, on_host=on_host)):
        raise HarnessError(
            f"{option}: {name} is no kernel for arm64",
            fix="name the file arch/arm64/boot/Image that a build of the kernel made",
        )


def _head(option: str, name: str, *, on_host: str = _OR_ON_HOST) -> bytes:
    """Return the first bytes of a file. `on_host` is what the fix says of files on the host."""
    path = Path(name)
    fix = f"name a file of this machine{on_host}"
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file"
        why = f"{name} {what}" if path.exists() else f"no file {name} on this machine"
        raise HarnessError(f"{option}: {why}", fix=fix)
    try:
        with path.open("rb") as file:
            return file.read(kernel_image.HEAD_BYTES)
    except OSError as problem:
        raise HarnessError(f"{option}: {name}: {problem.strerror}", fix=fix) from None
