"""The part of the machine's memory that a vfio-user client has mapped for the device."""

from __future__ import annotations

import errno
import mmap
import os

from harness.virtual.silicon.messages import RefusedError

PAGE = 4096


class AccessError(Exception):
    """An access to an address that no mapped region has, or a write to a read-only one. A bus would
    abort it."""


class Memory:
    """The mapped regions of the machine's memory. Addresses are physical."""

    def __init__(self) -> None:
        self._regions: dict[tuple[int, int], mmap.mmap | None] = {}

    def add(self, address: int, size: int, file: int | None, offset: int, writable: bool) -> None:
        """Add a region: `size` bytes from `offset` of the descriptor `file`. Without a file nothing
        in the region can be accessed. Raises RefusedError."""
        if size == 0 or (address | size | offset) % PAGE or address + size > 1 << 64:
            raise RefusedError(errno.EINVAL, f"DMA region {address:#x}+{size:#x}@{offset:#x}")
        for start, length in self._regions:
            if address < start + length and start < address + size:
                raise RefusedError(errno.EEXIST, f"DMA region {address:#x} overlaps {start:#x}")
        if len(self._regions) >= 1024:
            raise RefusedError(errno.ENOSPC, "too many DMA regions")
        mapped = None
        if file is not None:
            try:
                if os.fstat(file).st_size < offset + size:
                    raise RefusedError(errno.EINVAL, "the file is smaller than the DMA region")
                access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
                mapped = mmap.mmap(file, size, offset=offset, access=access)
            except (OSError, ValueError, OverflowError) as problem:
                raise RefusedError(errno.EINVAL, f"DMA region: {problem}") from None
        self._regions[address, size] = mapped

    def remove(self, address: int, size: int) -> None:
        """Remove a region, which must be given exactly as it was added. Raises RefusedError."""
        if (address, size) not in self._regions:
            raise RefusedError(errno.ENOENT, f"no DMA region {address:#x}+{size:#x}")
        mapped = self._regions.pop((address, size))
        if mapped:
            mapped.close()

    def clear(self) -> None:
        for address, size in list(self._regions):
            self.remove(address, size)

    def _find(self, address: int, size: int) -> tuple[mmap.mmap, int]:
        for (start, length), mapped in self._regions.items():
            if start <= address and address + size <= start + length and mapped is not None:
                return mapped, address - start
        raise AccessError(f"{size} bytes at {address:#x}")

    def read(self, address: int, size: int) -> bytes:
        """Read bytes, which must all lie in one region. Raises AccessError."""
        mapped, at = self._find(address, size)
        return mapped[at : at + size]

    def write(self, address: int, data: bytes) -> None:
        """Write bytes, which must all lie in one writable region. Raises AccessError."""
        mapped, at = self._find(address, len(data))
        try:
            mapped[at : at + len(data)] = data
        except TypeError:
            raise AccessError(f"{address:#x} is read-only") from None
