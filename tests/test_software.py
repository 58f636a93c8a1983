"""The software that a call names: what it is, and on which hosts it can be tested."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.host.host import HostDescription, HostFiles, Upload
from harness.host.target import Target
from harness.kernel_image import KernelImage
from harness.lab import inventory
from harness.lab.inventory import HostEntry
from harness.lab.software import HostKernel, Software

IMAGE = bytes(56) + b"ARM\x64" + bytes(4) + b"Linux version 7.3.4-mine (me@here)\0"


def image(folder: Path) -> Path:
    path = folder / "Image"
    path.write_bytes(IMAGE)
    return path


OWN = HostFiles("qemu", "firmware", "kernel", "initrd", "kernel.small-queues")


def described() -> HostDescription:
    return HostDescription(
        "one", Target("127.0.0.1", 22, "root", Path("key"), Path("known_hosts")), OWN, {}
    )


def test_the_hosts_own_kernel_has_its_own_variant() -> None:
    host, uploads = Software.named().applied(described())
    assert (host.files, uploads) == (OWN, ())


def test_a_given_guest_kernel_has_the_variant_that_is_beside_it(tmp_path: Path) -> None:
    """The host's own variant is another kernel, of which nobody asked for a result."""
    kernel, variant = image(tmp_path), tmp_path / "Image.small-queues"
    host, uploads = Software.named(guest_kernel=str(kernel)).applied(described())
    assert host.files.small_queues_kernel is None
    assert uploads == (Upload("guest_kernel", kernel),)
    variant.write_bytes(IMAGE)
    software = Software.named(guest_kernel=str(kernel))
    _, uploads = software.applied(described())
    assert uploads == (Upload("guest_kernel", kernel), Upload("small_queues_kernel", variant))
    assert software.files == [kernel, variant]
    variant.write_bytes(b"no kernel")
    with pytest.raises(HarnessError, match=r"Image\.small-queues is no kernel for arm64"):
        Software.named(guest_kernel=str(kernel))


def test_a_guest_kernel_on_the_host_has_a_variant_there() -> None:
    """Whether it is there the host tells when it is open, as that it has the capability."""
    host, uploads = Software.named(guest_kernel="host:/boot/Image").applied(described())
    assert host.files.guest_kernel == "/boot/Image"
    assert host.files.small_queues_kernel == "/boot/Image.small-queues"
    assert uploads == ()


def archive(folder: Path, *names: str) -> Path:
    """Return a tar archive with these files, each of which has its name as content."""
    path = folder / "modules.tar.gz"
    with tarfile.open(path, "w:gz") as out:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            out.addfile(member, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("lib/modules/7.3.4-mine/build")
        link.type, link.linkname = tarfile.SYMTYPE, "/home/me/linux"
        out.addfile(link)
    return path


@pytest.mark.parametrize("prefix", ["", "./", "usr/", "/", "./usr/"])
def test_modules_are_taken_from_where_they_are_in_the_archive(tmp_path: Path, prefix: str) -> None:
    """Those of other releases, files elsewhere, and links to the builder's machine are left out.
    The archive has a long name in a record of its own."""
    named = "kernel/drivers/mine.ko", "modules.dep", f"kernel/{'long' * 40}.ko"
    files = [f"{prefix}lib/modules/7.3.4-mine/{name}" for name in named]
    others = ["boot/Image", f"{prefix}lib/modules/7.3.4-other/modules.dep"]
    kernel = HostKernel(
        KernelImage.read(image(tmp_path)), modules=archive(tmp_path, *files, *others)
    )
    with tarfile.open(fileobj=io.BytesIO(kernel.module_files())) as found:
        assert tuple(found.getnames()) == named
        content = found.extractfile(named[0])
        assert content
        assert content.read().decode() == files[0]


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            lambda path: archive(path.parent, "lib/modules/7.3/x"),
            "has nothing in lib/modules/7.3.4",
        ),
        (lambda path: path.write_text("no archive"), "modules.tar.gz: "),
    ],
)
def test_an_archive_without_the_modules_is_told(tmp_path: Path, write: object, said: str) -> None:
    path = tmp_path / "modules.tar.gz"
    assert callable(write)
    write(path)
    with pytest.raises(HarnessError, match=said):
        HostKernel(KernelImage.read(image(tmp_path)), modules=path).module_files()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def changed(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + b"\xff" * 50 + data[half + 50 :]


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("wrong", [cut, changed])
def test_a_damaged_archive_is_told(
    tmp_path: Path, compress: Callable[[bytes], bytes], wrong: Callable[[bytes], bytes]
) -> None:
    content, path = io.BytesIO(), tmp_path / "modules.tar"
    module = " ".join(map(str, range(100_000))).encode()
    with tarfile.open(fileobj=content, mode="w") as out:
        member = tarfile.TarInfo("lib/modules/7.3.4-mine/mine.ko")
        member.size = len(module)
        out.addfile(member, io.BytesIO(module))
    path.write_bytes(wrong(compress(content.getvalue())))
    with pytest.raises(HarnessError, match=r"--host-modules: .*modules\.tar: "):
        HostKernel(KernelImage.read(image(tmp_path)), modules=path).module_files()


INVENTORY = """
lab: mine
hosts:
  - {name: virtual, virtual: {}}
  - {name: kexec, address: a, key: k, known_hosts: h, host_kernel: kexec}
  - {name: other, address: b, key: k, known_hosts: h}
"""


@pytest.fixture
def hosts(tmp_path: Path) -> dict[str, HostEntry]:
    path = tmp_path / "lab.yaml"
    path.write_text(INVENTORY)
    return {entry.name: entry for entry in inventory.load(path).hosts}


def test_a_host_kernel_is_refused_where_it_cannot_run(
    tmp_path: Path, hosts: dict[str, HostEntry]
) -> None:
    plain = Software.named(host_kernel=image(tmp_path))
    with_initrd = Software.named(host_kernel=image(tmp_path), host_initrd=image(tmp_path))
    for entry in (hosts["virtual"], hosts["kexec"]):
        plain.check(entry)
    with_initrd.check(hosts["kexec"])
    with pytest.raises(
        HarnessError, match="host virtual is a virtual one, which brings its initrd"
    ):
        with_initrd.check(hosts["virtual"])
    with pytest.raises(HarnessError, match="does not allow to boot kernels on host other"):
        plain.check(hosts["other"])
    for entry in hosts.values():
        Software.named().check(entry)


def test_an_initrd_without_a_kernel_is_told(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="--host-initrd: there is no --host-kernel"):
        Software.named(host_initrd=image(tmp_path))
