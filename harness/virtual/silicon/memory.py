"""The part of the machine's memory that a vfio-user client has mapped for the device.

It is read and written through its files, not mapped: an access beyond the end of a file that its
owner has made shorter is an error here, where it would be SIGBUS in a mapping.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from dataclasses import dataclass

from harness.virtual.silicon.messages import RefusedError

PAGE = 4096
#: Each has a descriptor, of which a process has 1024.
MOST_REGIONS = 512


class AccessError(Exception):
    """An access to an address that no mapped region has, or a write to a read-only one. A bus would
    abort it."""


@dataclass(frozen=True)
class _Region:
    """A region: `size` bytes at an address, which are those from `offset` of `file` on. Without a
    file nothing in it can be accessed."""

    address: int
    size: int
    file: int | None
    offset: int
    writable: bool


class Memory:
    """The mapped regions of the machine's memory. Addresses are physical. Regions may come and go
    in one thread while another reads and writes."""

    def __init__(self) -> None:
        self._regions: dict[tuple[int, int], _Region] = {}
        self._lock = threading.Lock()

    def add(self, address: int, size: int, file: int | None, offset: int, writable: bool) -> None:
        """Add a region: `size` bytes from `offset` of the descriptor `file`, which stays the
        caller's. Without a file nothing in the region can be accessed. Raises RefusedError."""
        if size == 0 or (address | size | offset) % PAGE or address + size > 1 << 64:
            raise RefusedError(errno.EINVAL, f"DMA region {address:#x}+{size:#x}@{offset:#x}")
        with self._lock:
            for start, length in self._regions:
                if address < start + length and start < address + size:
                    raise RefusedError(errno.EEXIST, f"DMA region {address:#x} overlaps {start:#x}")
            if len(self._regions) >= MOST_REGIONS:
                raise RefusedError(errno.ENOSPC, "too many DMA regions")
            ours = None if file is None else _copy(file, offset + size, writable)
            self._regions[address, size] = _Region(address, size, ours, offset, writable)

    def remove(self, address: int, size: int) -> None:
        """Remove a region, which must be given exactly as it was added. Raises RefusedError."""
        with self._lock:
            region = self._regions.pop((address, size), None)
            if region is None:
                raise RefusedError(errno.ENOENT, f"no DMA region {address:#x}+{size:#x}")
            if region.file is not None:
                os.close(region.file)

    def clear(self) -> None:
        """Remove all regions."""
        with self._lock:
            for region in self._regions.values():
                if region.file is not None:
                    os.close(region.file)
            self._regions.clear()

    def _find(self, address: int, size: int) -> tuple[_Region, int, int]:
        """Return the region that has all of these bytes, its file, and their offset in the file."""
        for region in self._regions.values():
            at = address - region.address
            if at >= 0 and at + size <= region.size and region.file is not None:
                return region, region.file, region.offset + at
        raise AccessError(f"{size} bytes at {address:#x}")

    def read(self, address: int, size: int) -> bytes:
        """Read bytes, which must all lie in one region. Raises AccessError."""
        with self._lock:
            _, file, offset = self._find(address, size)
            try:
                data = os.pread(file, size, offset)
            except OSError as problem:
                raise AccessError(f"{size} bytes at {address:#x}: {problem}") from None
        if len(data) < size:
            raise AccessError(f"{size} bytes at {address:#x}: the file has become shorter")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write bytes, which must all lie in one writable region. Raises AccessError."""
        with self._lock:
            region, file, offset = self._find(address, len(data))
            if not region.writable:
                raise AccessError(f"{address:#x} is read-only")
            try:
                if os.fstat(file).st_size < offset + len(data):  # the write would make it longer
                    raise AccessError(f"{address:#x}: the file has become shorter")
                os.pwrite(file, data, offset)
            except OSError as problem:
                raise AccessError(f"{len(data)} bytes at {address:#x}: {problem}") from None


def _copy(file: int, end: int, writable: bool) -> int:
    """Return our own descriptor of a file that can be accessed up to its byte `end`. Raises
    RefusedError."""
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(errno.EINVAL, "DMA region of something else than a file")
        if status.st_size < end:
            raise RefusedError(errno.EINVAL, "the file is smaller than the DMA region")
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        if writable and (flags & os.O_ACCMODE != os.O_RDWR or flags & os.O_APPEND):
            raise RefusedError(errno.EINVAL, "DMA region: the file cannot be written anywhere")
        os.pread(file, 1, end - 1)  # fails unless the file can be read
        return os.dup(file)
    except (OSError, OverflowError) as problem:
        raise RefusedError(errno.EINVAL, f"DMA region: {problem}") from None
