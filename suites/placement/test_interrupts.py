"""Devices behind an accelerated SMMU work whatever takes their interrupts in the guest: an ITS, a
GICv2m, or nothing that takes messages."""

from __future__ import annotations

import pytest

from harness.devices.nvme import Disk
from harness.devices.source import FaultSource
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest
from harness.guest.interrupt_line import interrupts
from harness.guest.vfio import unbound
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
#: With threads for interrupts a guest masks a line, which takes an exit, before it has served it.
#: KVM then knows that the line was active, and ACC-15 does not happen.
MASKED = "threadirqs"
#: Now and then ACC-15 takes so long that the guest's kernel turns the line off. The driver then
#: waits for each of its commands in vain, before it looks whether it was carried out: not for 60 s.
SHORT_WAITS = "nvme_core.admin_timeout=2 nvme_core.io_timeout=2"


def without_messages(*options: str) -> GuestSpec:
    """Describe a guest whose devices have nothing that takes their messages."""
    return GuestSpec(smmus=(SMMU,), machine="msi=off", append=" ".join((SILENT_PORTS, *options)))


def with_msi(value: str) -> pytest.MarkDecorator:
    """Return the mark for a guest with a value of the machine's property `msi`."""
    return pytest.mark.guest(GuestSpec(smmus=(SMMU,), machine=f"msi={value}"))


@pytest.mark.covers("ACC-15")
@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(True, id="its", marks=with_msi("its")),
        pytest.param(True, id="gicv2m", marks=with_msi("gicv2m")),
        pytest.param(
            False,
            id="off",
            marks=[
                pytest.mark.guest(without_messages(MASKED)),
                pytest.mark.kernel_report(FROM_INTERRUPT),
            ],
        ),
    ],
)
def test_data_and_events_flow(guest: Guest, writer: FaultSource, messages: bool) -> None:
    disk = Disk(guest, guest.device(DISK))
    written = disk.write_random(mib=1)
    assert disk.digest(mib=1) == written
    rows = guest.run("grep nvme /proc/interrupts").text
    assert ("MSI" in rows) is messages, rows
    check_faults(writer)


@pytest.mark.covers("ACC-15")
@pytest.mark.guest(without_messages(SHORT_WAITS))
@pytest.mark.kernel_report(FROM_INTERRUPT)
# It happens while the guest boots, too, which may then take longer than a guest is given.
@pytest.mark.known_defect(
    "ACC-15",
    symptom=r"interrupts came, and the device caused|waited \d+ s for guest guest0 ",
)
def test_an_interrupt_without_a_message_comes_once(fleet: Fleet) -> None:
    """Not many times, until something interrupts the guest while it serves one. While the driver
    finds the drive, it serves them without leaving for the host."""
    with fleet.guests([without_messages(SHORT_WAITS)]) as (guest,):
        device = guest.device(DISK)
        before = interrupts(guest, device)
        unbound(guest, device)
        Disk(guest, device)
        more = interrupts(guest, device) - before
    assert more.by_host > 0
    assert more.by_guest <= 2 * more.by_host, (
        f"{more.by_guest} interrupts came, and the device caused {more.by_host}"
    )
