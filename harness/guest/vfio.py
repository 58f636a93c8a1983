"""Drive a guest's PCI device from user space, with the guest's program `hil vfio`: its registers,
memory that it can reach, and the IOVAs at which it finds that memory.

    bound(guest, device, "vfio-pci")
    guest.run(
        vfio_command(
            device.guest_bdf,
            8192,
            map_memory(iova, 4096, 4096),
            write32(doorbell, 1),
            inside(MEMORY),
            until32(4096, 1, 1),
        )
    )

The operations are those of `harness.guest.mmio` and the two of this module. The first are on BAR 0.
At its start the program gives the device an address space in which nothing is mapped, and makes it
a bus master, with INTx disabled. At its end, or when it is killed, the device is reset.

Linux: Documentation/driver-api/vfio.rst (VFIO device cdev) and userspace-api/iommufd.rst.
sysfs: Documentation/ABI/testing/sysfs-bus-pci (driver_override, unbind, drivers_probe).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from harness.errors import ProductError
from harness.guest.console import Output
from harness.guest.description import AssignedDevice
from harness.guest.firmware_tables import permit_remapping
from harness.guest.guest import Guest
from harness.guest.mmio import MEMORY as PHYSICAL
from harness.guest.mmio import Op, command
from harness.steps import step

#: For `mmio.inside`: the device's BAR 0, and the program's own memory, with offsets from its start.
BAR0, MEMORY = "bar0", "memory"


def vfio_command(bdf: str, size: int, *ops: Op) -> str:
    """Return the guest's shell command that performs operations on the device at `bdf`, with `size`
    bytes of zeroed memory. vfio-pci must drive the device: see `bound`.

    Like `hil mmio` it prints the values that were read, one on a line.
    """
    return shlex.join(["hil", "vfio", bdf, f"{size:#x}", *ops])


def map_memory(iova: int, offset: int, length: int, *, writable: bool = True) -> Op:
    """Return the operation that maps `length` bytes of the program's memory, from `offset` on, for
    the device at an IOVA. All three are multiples of the guest's page size. The device can read
    them, and write to them if `writable`."""
    return Op(f"map:{iova:#x}={offset:#x}+{length:#x}{'' if writable else ',ro'}")


def unmap_memory(iova: int, length: int) -> Op:
    """Return the operation that unmaps what was mapped in `length` bytes at an IOVA: whole
    mappings."""
    return Op(f"unmap:{iova:#x}+{length:#x}")


def bind_command(device: AssignedDevice, driver: str) -> str:
    """Return the guest's shell command that `bound` runs."""
    name = shlex.quote(driver)
    driven = f'[ "$(readlink driver | sed s,.*/,,)" = {name} ]'
    return (
        f"cd {device.sysfs} && {{ {driven} || {{ echo {name} >driver_override && "
        f"{{ [ ! -e driver ] || echo {device.guest_bdf} >driver/unbind; }} && "
        f"echo {device.guest_bdf} >/sys/bus/pci/drivers_probe && {driven}; }} || "
        "{ ls -l driver; false; }; }"
    )


def unbind_command(device: AssignedDevice) -> str:
    """Return the guest's shell command that `unbound` runs."""
    return (
        f"cd {device.sysfs} && {{ [ ! -e driver ] || echo {device.guest_bdf} >driver/unbind; }} && "
        "echo >driver_override"
    )


def bound(guest: Guest, device: AssignedDevice, driver: str) -> None:
    """Bind a device in the guest to a driver, taking it from another if one has it.

    A driver may need a moment longer to make its block device or interface: see `hotplug.is_ready`.
    Raises ProductError, with what the guest printed, if the driver does not have the device then.
    """
    with step(f"bind {device.role} {device.guest_bdf} to {driver} in the guest"):
        _run(guest, device, bind_command(device, driver), f"be bound to {driver}")


def unbound(guest: Guest, device: AssignedDevice) -> None:
    """Take a device from its driver in the guest, if one has it, and let any driver have it later.

    Raises ProductError, with what the guest printed, if the guest does not have the device.
    """
    with step(f"take {device.role} {device.guest_bdf} from its driver in the guest"):
        _run(guest, device, unbind_command(device), "be taken from its driver")


def lent(guest: Guest, device: AssignedDevice, *ops: Op) -> list[int]:
    """Bind a device to vfio-pci in the guest, so that a program can have it. Return the values that
    operations on its BAR 0 read, which are performed the first time, while no driver has it.

    QEMU's IORT demands that devices behind an accelerated SMMU find the host's MSI doorbells one to
    one, and Linux lends no such device to a program (`require_direct` in drivers/iommu/iommu.c).
    The device needs the doorbells only for its interrupts, which a program here does not use. So
    the demand is taken back in the guest's copy of the table, and the guest finds the device anew.

    Raises ProductError as `bound`.
    """
    values = f"/tmp/{'-'.join(['lent', device.guest_bdf, *ops])}"
    bind = f"{{ {bind_command(device, 'vfio-pci')}; }} && cat {values}"
    with step(f"lend {device.role} {device.guest_bdf} to a program in the guest"):
        done = guest.run(f"test -e {values} && {bind}", check=False)
        if done.status != 0:
            anew = _find_anew_command(device, permit_remapping(guest))
            read = _read_command(ops, values)
            done = _run(guest, device, f"{anew} && {read} && {bind}", "be lent to a program")
    return [int(word, 16) for word in done.text.split()]


def _find_anew_command(device: AssignedDevice, changes: Sequence[Op]) -> str:
    """Return the guest's shell command that changes memory, has the guest find a device anew, and
    leaves it without a driver, in its folder."""
    autoprobe = "/sys/bus/pci/drivers_autoprobe"
    change = f"{command(PHYSICAL, *changes)} && " if changes else ""
    return (
        f"{change}cd -P {device.sysfs} && port=${{PWD%/*}} && cd / && "
        f"echo 1 >$port/{device.guest_bdf}/remove && "
        f"{{ echo 0 >{autoprobe}; echo 1 >$port/rescan; echo 1 >{autoprobe}; }} && "
        f"cd {device.sysfs}"
    )


def _read_command(ops: Sequence[Op], values: str) -> str:
    """Return the guest's shell command that performs operations on BAR 0 of the device in whose
    folder it runs, and writes what was read into a file."""
    if not ops:
        return f": >{values}"
    read = f"echo 1 >enable && read=$({command('resource0', *ops)}) && echo 0 >enable"
    return f'{read} && echo "$read" >{values}'


def _run(guest: Guest, device: AssignedDevice, command: str, what: str) -> Output:
    done = guest.run(command, check=False)
    if done.status != 0:
        raise ProductError(
            f"{device.role} at {device.guest_bdf} of guest {guest.name} cannot {what}: "
            f"{done.text.strip()}"
        )
    return done
