"""Close the file of a vEVENTQ and destroy the queue at the same moment, again and again.

    python3 - /dev/vfio/devices/vfioN ROUNDS <close_and_destroy.py

This runs on a lab host: standard library only, Python 3.9. It prints how many rounds it did.
Source: include/uapi/linux/iommufd.h and vfio.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
import time

DESTROY, IOAS_ALLOC, HWPT_ALLOC, VIOMMU_ALLOC, VEVENTQ_ALLOC = (
    0x3B00 | number for number in (0x80, 0x81, 0x89, 0x90, 0x93)
)
BIND_IOMMUFD = 0x3B76
#: IOMMU_HWPT_ALLOC_NEST_PARENT, and the types IOMMU_VIOMMU_TYPE_ARM_SMMUV3 and
#: IOMMU_VEVENTQ_TYPE_ARM_SMMUV3.
NEST_PARENT, VIOMMU_ARM_SMMUV3, VEVENTQ_ARM_SMMUV3 = 1, 1, 1
DEPTH = 8
#: Longest that the queue may be in use after its file is closed, in seconds.
BUSY_SECONDS = 10.0


def call(file: int, number: int, layout: str, *values: int) -> tuple[int, ...]:
    """Make a call whose struct begins with its size; return the struct's other members."""
    size = struct.calcsize(f"=I{layout}")
    argument = bytearray(struct.pack(f"=I{layout}", size, *values))
    fcntl.ioctl(file, number, argument)
    return struct.unpack(f"=I{layout}", argument)[1:]


def viommu(iommufd: int, vfio: int) -> int:
    """Return the id of a vIOMMU of the device's SMMU."""
    device = call(vfio, BIND_IOMMUFD, "IiI", 0, iommufd, 0)[2]
    ioas = call(iommufd, IOAS_ALLOC, "II", 0, 0)[1]
    parent = (NEST_PARENT, device, ioas, 0, 0, 0, 0, 0, 0, 0)
    hwpt = call(iommufd, HWPT_ALLOC, "IIIIIIIQII", *parent)[3]
    return call(iommufd, VIOMMU_ALLOC, "IIIIIIIQ", 0, VIOMMU_ARM_SMMUV3, device, hwpt, 0, 0, 0, 0)[
        4
    ]


def destroy(iommufd: int, queue: int) -> None:
    """Destroy a queue as soon as the kernel does it."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            call(iommufd, DESTROY, "I", queue)
            return
        except OSError as problem:
            if problem.errno != errno.EBUSY or time.monotonic() > until:
                raise


def main() -> None:
    device, rounds = sys.argv[1], int(sys.argv[2])
    iommufd, vfio = os.open("/dev/iommu", os.O_RDWR), os.open(device, os.O_RDWR)
    mother = viommu(iommufd, vfio)
    # If one of the two threads ends early, the other does not wait for ever.
    together = threading.Barrier(2, timeout=2 * BUSY_SECONDS)
    files: list[int] = []

    def close() -> None:
        for _ in range(rounds):
            together.wait()
            os.close(files.pop())

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    for _ in range(rounds):
        asked = (0, mother, VEVENTQ_ARM_SMMUV3, DEPTH, 0, 0, 0)
        *_, queue, file, _ = call(iommufd, VEVENTQ_ALLOC, "IIIIIII", *asked)
        files.append(file)
        together.wait()
        destroy(iommufd, queue)
    closing.join()
    print(rounds)


if __name__ == "__main__":
    main()
