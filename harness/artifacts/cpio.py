"""Write initial RAM file systems, in the kernel's newc cpio format, without needing root.

Source: Documentation/driver-api/early-userspace/buffer-format.rst
"""

from __future__ import annotations

import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A file, a folder (`data` is None) or a link (`mode` has S_IFLNK, `data` is its target)."""

    name: str
    data: bytes | None = None
    mode: int = 0o755


def newc(entries: list[Entry]) -> bytes:
    """Return an uncompressed archive of `entries`, in their order. A folder must come before its
    contents."""
    out = bytearray()
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", b"", 0)], start=1):
        kind = stat.S_IFMT(entry.mode) or (stat.S_IFDIR if entry.data is None else stat.S_IFREG)
        mode = 0 if entry.name == "TRAILER!!!" else kind | stat.S_IMODE(entry.mode)
        data = entry.data or b""
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)
