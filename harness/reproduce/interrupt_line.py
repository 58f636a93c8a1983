"""A device without messages interrupts a guest that serves it without leaving for the host."""

from __future__ import annotations

from harness.devices.nvme import Disk
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.interrupt_line import interrupts
from harness.guest.vfio import unbound
from harness.host.ability import DISK
from harness.reproduce.show import Say, in_guest


def _show(guest: Guest, say: Say) -> bool:
    """Have a guest's driver find an NVMe drive that can only raise its line (INTx)."""
    device = guest.device(DISK)
    before = interrupts(guest, device)
    say("the guest takes its driver from an NVMe drive, and gives it back")
    unbound(guest, device)
    Disk(guest, device)
    more = interrupts(guest, device) - before
    say(f"the drive's line interrupted the host:  {more.by_host} times")
    say("it should have interrupted the guest as often")
    say(f"it interrupted the guest:               {more.by_guest} times")
    return more.by_guest > 2 * more.by_host


SHOW = in_guest(
    GuestSpec(smmus=(SmmuSpec(devices=(DISK,)),), machine="msi=off", append="pcie_ports=compat"),
    _show,
    # KVM may also call other CPUs from the interrupt: docs/defects.md.
    kernel_report="smp_call_function_many_cond",
)
