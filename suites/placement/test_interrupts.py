"""Devices behind an accelerated SMMU work whatever takes their interrupts in the guest: an ITS, a
GICv2m, or nothing that takes messages."""

from __future__ import annotations

import pytest

from harness.devices.nvme import Disk
from harness.devices.source import FaultSource
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import DISK, WRITER
from suites.placement.faults import check_faults

SMMU = SmmuSpec(devices=(WRITER, DISK))
#: Linux 7.3 may call the other CPUs from a device's interrupt, when it passes a level on to a guest
#: (vfio_intx_handler, kvm_make_all_cpus_request), and warns of itself. That depends on what they do
#: at that moment, so that no run can expect it: docs/defects.md.
FROM_INTERRUPT = r"WARNING: .* smp_call_function_many_cond"

#: A root port has the line of the device behind it, and a line that QEMU and vfio share loses
#: interrupts: docs/defects.md. Without its services (hot-plug) a port is silent.
SILENT_PORTS = "pcie_ports=compat"


def with_msi(value: str, *marks: pytest.MarkDecorator, messages: bool) -> object:
    """Return a test's parameter for a value of the machine's property `msi`: whether a guest's
    devices can send messages."""
    append = "" if messages else SILENT_PORTS
    guest = pytest.mark.guest(GuestSpec(smmus=(SMMU,), machine=f"msi={value}", append=append))
    return pytest.param(messages, id=value, marks=[guest, *marks])


@pytest.mark.covers("ACC-15")
@pytest.mark.parametrize(
    "messages",
    [
        with_msi("its", messages=True),
        with_msi("gicv2m", messages=True),
        with_msi("off", pytest.mark.kernel_report(FROM_INTERRUPT), messages=False),
    ],
)
def test_data_and_events_flow(guest: Guest, writer: FaultSource, messages: bool) -> None:
    disk = Disk(guest, guest.device(DISK))
    written = disk.write_random(mib=1)
    assert disk.digest(mib=1) == written
    interrupts = guest.run("grep nvme /proc/interrupts").text
    assert ("MSI" in interrupts) is messages, interrupts
    check_faults(writer)
