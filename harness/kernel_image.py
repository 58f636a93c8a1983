"""A kernel Image for arm64 on this machine: whether a file is one, its release, its digest."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

#: The bytes from which a file's kind is told.
HEAD_BYTES = 64
#: What the name of the variant of a guest kernel for small SMMU queues has after that kernel's.
SMALL_QUEUES = ".small-queues"
#: So many hexadecimal digits of a SHA-256 tell the files of a lab apart.
_DIGEST_DIGITS = 12
#: What stands around the .config in a kernel.
_CONFIG_START, _CONFIG_END = b"IKCFG_ST", b"IKCFG_ED"
_BANNER = re.compile(rb"Linux version ([^ \0%]+) ")


def digest(content: bytes) -> str:
    """Return the digest by which a file is known: the first twelve digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:_DIGEST_DIGITS]


def is_kernel(head: bytes) -> bool:
    """Return whether a file whose first HEAD_BYTES are these is a kernel that QEMU boots: an Image
    (Linux, Documentation/arch/arm64/booting.rst), one that unpacks itself (zboot-header.S), or one
    that is packed by gzip."""
    return head[56:60] == b"ARM\x64" or _is_zboot(head) or head.startswith(b"\x1f\x8b")


def _is_zboot(head: bytes) -> bool:
    return head[4:8] == b"zimg"


@dataclass(frozen=True)
class KernelImage:
    """A file of this machine that is a kernel Image. `release` is what `uname -r` says on a machine
    that runs it; None if that cannot be read from the file."""

    path: Path
    digest: str
    release: str | None

    @classmethod
    def read(cls, path: Path) -> KernelImage:
        """Read a file. Raises OSError, and ValueError if it is no kernel for arm64."""
        content = path.read_bytes()
        if not is_kernel(content[:HEAD_BYTES]):
            raise ValueError(f"{path} is no kernel for arm64")
        banner = _BANNER.search(_unpacked(content))
        release = banner[1].decode(errors="replace") if banner else None
        return cls(path.absolute(), digest(content), release)

    def __str__(self) -> str:
        return f"{self.release or 'unknown release'}, sha256 {self.digest}"


def configuration(content: bytes) -> str:
    """Return the .config that a file has: a .config itself, one that is packed by gzip as in
    /proc/config.gz, or a kernel that was built with CONFIG_IKCONFIG (kernel/configs.c). Raises
    ValueError if it has none."""
    content = _unpacked(content)
    if not is_kernel(content[:HEAD_BYTES]):
        return content.decode(errors="replace")
    start, end = content.find(_CONFIG_START), content.find(_CONFIG_END)
    packed = content[start + len(_CONFIG_START) : end]
    text = _unpacked(packed)
    if start < 0 or end < start or text is packed:
        raise ValueError("this kernel was built without CONFIG_IKCONFIG, or is not packed by gzip")
    return text.decode(errors="replace")


def _unpacked(content: bytes) -> bytes:
    """Return the Image in a file; the file as it is if it is not packed, or not by gzip."""
    packed = content
    if _is_zboot(content):
        # Where its payload is, and its size (drivers/firmware/efi/libstub/zboot-header.S).
        start, size = (int.from_bytes(content[at : at + 4], "little") for at in (8, 12))
        packed = content[start : start + size]
    if not packed.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error):
        return content
