"""Kernel Images are told from other files, and from each other."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from harness.kernel_image import KernelImage

#: The header of an Image (Linux, Documentation/arch/arm64/booting.rst) has its magic at 56.
HEADER = bytes(56) + b"ARM\x64" + bytes(4)
IMAGE = HEADER + b"Linux version %s\0...Linux version 7.3.4-mine (me@here) (gcc) #1 SMP\0"


FORMS = ("plain", "gzip", "zboot")


def image(folder: Path, content: bytes) -> Path:
    path = folder / "Image"
    path.write_bytes(content)
    return path


def zboot(image: bytes) -> bytes:
    """Return an Image that unpacks itself, as zboot-header.S begins one."""
    packed = gzip.compress(image)
    places = (64).to_bytes(4, "little") + len(packed).to_bytes(4, "little")
    return b"MZ\0\0zimg" + places + bytes(48) + packed + b"what unpacks it"


@pytest.mark.parametrize("content", [IMAGE, gzip.compress(IMAGE), zboot(IMAGE)], ids=FORMS)
def test_the_release_is_read_from_the_banner(tmp_path: Path, content: bytes) -> None:
    found = KernelImage.read(image(tmp_path, content))
    assert found.release == "7.3.4-mine"
    assert str(found) == f"7.3.4-mine, sha256 {found.digest}"


@pytest.mark.parametrize(
    "content", [HEADER, gzip.compress(IMAGE)[:40], zboot(IMAGE)[:90]], ids=FORMS
)
def test_a_kernel_without_a_banner_is_one(tmp_path: Path, content: bytes) -> None:
    found = KernelImage.read(image(tmp_path, content))
    assert found.release is None
    assert str(found) == f"unknown release, sha256 {found.digest}"


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF" + bytes(100), IMAGE[1:]], ids=("empty", "ELF", "shifted")
)
def test_what_is_no_kernel_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match="no kernel for arm64"):
        KernelImage.read(image(tmp_path, content))


def test_one_bit_makes_another_kernel(tmp_path: Path) -> None:
    one = KernelImage.read(image(tmp_path, IMAGE))
    other = KernelImage.read(image(tmp_path, IMAGE[:-1] + b"\1"))
    assert one.digest != other.digest
    assert one.digest == KernelImage.read(image(tmp_path, IMAGE)).digest
