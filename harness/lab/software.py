"""The software to test in place of a host's own: QEMU, the guests' kernel, the host's kernel."""

from __future__ import annotations

import io
import lzma
import re
import tarfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from harness import kernel_image
from harness.errors import HarnessError
from harness.host.host import HostDescription, Upload
from harness.kernel_image import KernelImage
from harness.lab.inventory import HostEntry

#: How the option for a file begins that is on the host.
ON_HOST = "host:"
_MODULES = "give a tar archive of what `make modules_install` of the same kernel has installed"
_OR_ON_HOST = f", or {ON_HOST}PATH for one on the host"


@dataclass(frozen=True)
class HostKernel:
    """The kernel that a host itself is to run. `initrd`, and `modules`, a tar archive, are for a
    host that is brought to it by kexec; None if the kernel needs none."""

    image: KernelImage
    initrd: Path | None = None
    modules: Path | None = None

    def module_files(self) -> bytes:
        """Return a tar archive of what `modules` has in lib/modules/RELEASE, from there. Raises
        HarnessError if there is nothing."""
        assert self.modules
        found, names = io.BytesIO(), 0
        inside = re.compile(rf"(?:^|/)lib/modules/{re.escape(str(self.image.release))}/(.+)")
        try:
            with tarfile.open(self.modules) as given, tarfile.open(fileobj=found, mode="w") as out:
                for member in given:
                    path = inside.search(member.name)
                    if path and (member.isfile() or member.isdir()):
                        content = given.extractfile(member) if member.isfile() else None
                        # A name in these records counts in place of the header's.
                        member.name, member.uid, member.gid = path[1], 0, 0
                        member.pax_headers = {}
                        out.addfile(member, content)
                        names += 1
        # The last three are what its compression says of a damaged one.
        except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as problem:
            raise HarnessError(f"--host-modules: {self.modules}: {problem}", fix=_MODULES) from None
        if not names:
            raise HarnessError(
                f"--host-modules: {self.modules} has nothing in lib/modules/{self.image.release}",
                fix=_MODULES,
            )
        return found.getvalue()


@dataclass(frozen=True)
class Software:
    """What is under test. None leaves the host's own.

    `qemu` and `guest_kernel` are each a file of this machine, which is copied to the host, or
    host:PATH. The host itself runs `host_kernel`. The variant of a guest kernel for small SMMU
    queues is the file beside it whose name ends in `.small-queues`, if there is one.
    """

    qemu: str | None = None
    guest_kernel: str | None = None
    host_kernel: HostKernel | None = None

    @classmethod
    def named(
        cls,
        qemu: str | None = None,
        guest_kernel: str | None = None,
        host_kernel: Path | None = None,
        host_initrd: Path | None = None,
        host_modules: Path | None = None,
    ) -> Software:
        """Return the software that the options `--qemu`, `--guest-kernel`, … name. Raises
        HarnessError for a file of this machine that is not what it should be; a path on the host is
        checked when the host is open. Paths of this machine become absolute: a test may have
        another current folder when the host is opened."""
        if qemu is not None and not qemu.startswith(ON_HOST):
            _check_program("--qemu", qemu)
        if guest_kernel is not None and not guest_kernel.startswith(ON_HOST):
            _check_kernel("--guest-kernel", guest_kernel)
            if Path(guest_kernel + kernel_image.SMALL_QUEUES).exists():
                _check_kernel("--guest-kernel", guest_kernel + kernel_image.SMALL_QUEUES)
        kernel = _host_kernel(host_kernel, host_initrd, host_modules)
        return cls(_absolute(qemu), _absolute(guest_kernel), kernel)

    @property
    def host_image(self) -> KernelImage | None:
        return self.host_kernel.image if self.host_kernel else None

    @property
    def qemu_file(self) -> Path | None:
        """Return the file of this machine that is QEMU, if it is one."""
        return _file(self.qemu)

    @property
    def guest_file(self) -> Path | None:
        """Return the file of this machine that is the guests' kernel, if it is one."""
        return _file(self.guest_kernel)

    @property
    def small_queues_kernel(self) -> str | None:
        """Return the variant of the guests' kernel for small queues, which is named as that is;
        None if there is none. Of one on the host that is not known before the host is open."""
        if self.guest_kernel is None:
            return None
        variant = self.guest_kernel + kernel_image.SMALL_QUEUES
        file = _file(variant)
        return variant if file is None or file.exists() else None

    @property
    def files(self) -> list[Path]:
        """Return the files of this machine that are tested."""
        kernel = self.host_kernel
        own = [kernel.image.path, kernel.initrd, kernel.modules] if kernel else []
        variant = _file(self.small_queues_kernel)
        return [one for one in (self.qemu_file, self.guest_file, variant, *own) if one]

    def check(self, entry: HostEntry) -> None:
        """Raise HarnessError if a host cannot run the host kernel. Of one that asks for a place it
        is not known before it has one."""
        if self.host_kernel is None or entry.place is not None:
            return
        if entry.virtual is not None:
            if self.host_kernel.initrd or self.host_kernel.modules:
                raise HarnessError(
                    f"--host-initrd, --host-modules: host {entry.name} is a virtual one, which "
                    "brings its initrd and has no modules",
                    fix="build what the host needs into the kernel: see "
                    "harness/guest/payload/kernel.config",
                )
        elif entry.host_kernel is None:
            raise HarnessError(
                f"--host-kernel: the inventory does not allow to boot kernels on host {entry.name}",
                fix="add `host_kernel: kexec` to the host if its owner agrees: it is rebooted then",
            )

    def applied(self, described: HostDescription) -> tuple[HostDescription, tuple[Upload, ...]]:
        """Return the host with this QEMU and guest kernel, and the files to copy there."""
        files, uploads = described.files, []
        if self.guest_kernel is not None:
            # The host's own variant is of another kernel: it would be tested in place of this one.
            files = replace(files, small_queues_kernel=None)
        for which, value in (
            ("qemu", self.qemu),
            ("guest_kernel", self.guest_kernel),
            ("small_queues_kernel", self.small_queues_kernel),
        ):
            if value is None:
                continue
            if value.startswith(ON_HOST):
                files = replace(files, **{which: value.removeprefix(ON_HOST)})
            else:
                uploads.append(Upload(which, Path(value)))
        return replace(described, files=files), tuple(uploads)


def _absolute(name: str | None) -> str | None:
    file = _file(name)
    return str(file.absolute()) if file else name


def _file(name: str | None) -> Path | None:
    return None if name is None or name.startswith(ON_HOST) else Path(name)


def _host_kernel(path: Path | None, initrd: Path | None, modules: Path | None) -> HostKernel | None:
    """Return the host's kernel, if one is given."""
    for option, file in (("--host-initrd", initrd), ("--host-modules", modules)):
        if file and path is None:
            raise HarnessError(f"{option}: there is no --host-kernel for it", fix="give both")
        if file:
            _head(option, str(file), on_host="")
    if path is None:
        return None
    _check_kernel("--host-kernel", str(path), on_host="")
    try:
        more = [file and file.absolute() for file in (initrd, modules)]
        return HostKernel(KernelImage.read(path), *more)
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
