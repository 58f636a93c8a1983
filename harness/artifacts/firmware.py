"""The variables that the guests' firmware keeps, as they are after a guest's first boot.

EDK2 keeps them in the second flash of QEMU's virt machine. In an empty flash it makes its store,
and writes its defaults, at each boot; and the variables ConIn, ConOut and ErrOut, when the machine
has other consoles than these name. That takes 2,500 accesses that leave the guest, 700 of them for
the consoles, each of which costs some 0.3 ms on an emulated host.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.artifacts import tools
from harness.errors import LabError

#: The size of the flash (VIRT_FLASH in QEMU's hw/arm/virt.c is two of them).
FLASH_BYTES = 64 << 20
#: Longest that the firmware and a kernel may take, in seconds; some 2 s are usual.
_SECONDS = 120
#: The console of guests, in its place (harness/guest/description.py).
_CONSOLE = (
    *("-device", "virtio-serial-pci,bus=pcie.0,addr=0x1f"),
    *("-chardev", "null,id=console", "-device", "virtconsole,chardev=console,nr=0"),
)
#: The kernel has done enough once its first process runs, which turns the machine off.
_OFF = "quiet acpi=force panic=-1 rdinit=/bin/poweroff -- -f"


def variables(
    qemu: Sequence[str], firmware: Path, image: Path, initramfs: Path, work: Path
) -> bytes:
    """Boot a virt machine once, with an empty flash in the folder `work`, and return what the flash
    has then, without the zeros at its end. Raises LabError if the firmware has written nothing."""
    flash = work / "flash"
    with flash.open("wb") as file:
        file.truncate(FLASH_BYTES)
    tools.run(
        [
            *("timeout", str(_SECONDS), *qemu),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "virt,gic-version=3", "-cpu", "cortex-a76", "-m", "256M"),
            *("-bios", str(firmware)),
            *("-drive", f"if=pflash,unit=1,format=raw,file={flash}"),
            *_CONSOLE,
            *("-kernel", str(image), "-initrd", str(initramfs), "-append", _OFF),
        ],
        what="the first boot of the guests' firmware",
    )
    content = flash.read_bytes().rstrip(b"\0")
    flash.unlink()
    if not content:
        raise LabError(
            f"the guests' firmware {firmware.name} keeps no variables in QEMU's second flash",
            fix="is it a build of EDK2's ArmVirtQemu? Debian's qemu-efi-aarch64 is",
        )
    return content
