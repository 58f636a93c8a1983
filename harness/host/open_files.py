"""Open files and run a program that has them open, as libvirt starts QEMU.

    python3 open_files.py qemu-system-aarch64 … -object iommufd,id=iommufd0,fd={/dev/iommu} …

"{/PATH}" in an argument becomes the number of a descriptor of that file, opened for reading and
writing. The folder /sys/bus/pci/devices/BDF/vfio-dev of a device that a vfio driver has stands for
the device's file in /dev/vfio/devices.

This runs on a lab host: standard library only, Python 3.9.
Source: Documentation/driver-api/vfio.rst in Linux (VFIO device cdev).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

VFIO_DEVICES = "/dev/vfio/devices"


def opened(path: str) -> str:
    """Open the file at a path, or that of the vfio device whose folder it is; return its
    descriptor's number, which a program that is run inherits."""
    if Path(path).is_dir():
        (inside,) = Path(path).iterdir()
        path = f"{VFIO_DEVICES}/{inside.name}"
    descriptor = os.open(path, os.O_RDWR)
    os.set_inheritable(descriptor, True)
    return str(descriptor)


def with_descriptors(argument: str) -> str:
    """Return an argument in which each "{/PATH}" is the number of a descriptor."""
    return re.sub(r"\{(/[^{}]*)\}", lambda found: opened(found[1]), argument)


def main() -> None:
    """Replace this program by the one that its arguments name."""
    argv = [with_descriptors(one) for one in sys.argv[1:]]
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main()
