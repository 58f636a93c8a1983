"""A running guest with an accelerated SMMU survives refused devices, a refused migration, and a
reset while DMA is in flight."""

from __future__ import annotations

import re

import pytest

from harness import kernel_log
from harness.devices import fault_source
from harness.devices.dma import ACCESS_BYTES, UNMAPPED, Direction, Dma
from harness.devices.edu import Edu
from harness.devices.testdev import IommuTestdev
from harness.errors import ProductError
from harness.guest import description
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import is_plugged
from harness.host.host import Host
from harness.qmp import QmpRefusedError
from harness.smmu.events import EventType
from harness.smmu.trace import TraceEvent
from harness.waiting import wait_for
from suites.placement.messages import EMULATED, NO_IOMMUFD

EDU = SmmuSpec(devices=("edu",))
#: The NVMe is never plugged, so that its root port is empty.
ROOM = GuestSpec(smmus=(SmmuSpec(devices=("edu",), hot=("nvme",)),))
EMPTY = GuestSpec(smmus=(SmmuSpec(hot=("edu",)),))


def check_faults(guest: Guest, role: str, iova: int, count: int = 16, smmu: int = 0) -> None:
    """Have a device fault, and check that its events reach the guest exactly."""
    device, queue = fault_source(guest, role, smmu), guest.event_queue(smmu)
    mark = queue.mark()
    dma = Dma(iova, count * ACCESS_BYTES, Direction.WRITE)
    device.perform(dma)
    queue.expect(dma.expected(EventType.F_TRANSLATION, device.vsid), mark)


@pytest.mark.covers("ACC-02")
@pytest.mark.guest(ROOM)
@pytest.mark.parametrize("driver", ["edu", "e1000e", "virtio-rng-pci"])
def test_an_emulated_endpoint_is_refused(guest: Guest, driver: str) -> None:
    port = description.port_id(0, guest.device("nvme").port)
    with pytest.raises(QmpRefusedError) as refused:
        guest.monitor.execute("device_add", driver=driver, bus=port, id="emulated")
    assert refused.value.reason == EMULATED
    assert guest.run(
        f"ls /sys/bus/pci/devices/{guest.device('nvme').guest_bdf}", check=False
    ).status
    check_faults(guest, "edu", UNMAPPED)


@pytest.mark.covers("ACC-03")
@pytest.mark.guest(ROOM)
def test_a_device_without_iommufd_is_refused(guest: Guest) -> None:
    nvme = guest.device("nvme")
    properties = description.device_properties(nvme)
    del properties["iommufd"]
    with pytest.raises(QmpRefusedError) as refused:
        guest.monitor.execute("device_add", **properties)
    assert refused.value.reason == NO_IOMMUFD
    assert not is_plugged(guest, nvme)
    check_faults(guest, "edu", UNMAPPED)


@pytest.mark.covers("ACC-04")
@pytest.mark.guest(EMPTY)
def test_a_bridge_may_be_plugged(guest: Guest) -> None:
    place = guest.device("edu")
    port = description.port_id(0, place.port)
    guest.monitor.execute("device_add", driver="pcie-pci-bridge", bus=port, id="bridge")
    wait_for(
        "the guest to find the bridge",
        lambda: guest.run(f"test -e {place.sysfs}", check=False).status == 0,
        deadline=10,
        error=ProductError,
    )


@pytest.mark.covers("ACC-09")
@pytest.mark.guest(GuestSpec(smmus=(EDU, SmmuSpec(devices=("iommu-testdev",)))))
def test_two_smmus_share_addresses_and_stage_2(guest: Guest, host: Host) -> None:
    """The guest's memory is the same for all its devices, so QEMU needs one IOAS and one stage 2
    for both SMMUs. A stage 2 belongs to one SMMU of the host, so both devices must be behind the
    same one there."""
    behind = {host.devices[device.host_bdf].iommu for device in guest.devices}
    assert len(behind) == 1, "the lab gave devices of two SMMUs"
    trace = guest.trace()
    hwpts = trace.named(TraceEvent.ALLOC_HWPT)
    stage2 = [line.number("out_hwpt") for line in hwpts if line.number("hwpt_type") == 0]
    assert len(stage2) == 1
    assert trace.numbers(TraceEvent.ALLOC_VIOMMU, "hwpt_id") == stage2 * 2
    assert len(set(trace.numbers(TraceEvent.ALLOC_VIOMMU, "viommu_id"))) == 2
    check_faults(guest, "edu", UNMAPPED, smmu=0)
    check_faults(guest, "iommu-testdev", 2 * UNMAPPED, smmu=1)


@pytest.mark.covers("ACC-11")
@pytest.mark.guest(EMPTY)
def test_migration_is_refused(guest: Guest) -> None:
    """QEMU refuses to migrate a guest because of its accelerated SMMU. The guest has no device,
    because QEMU would name an assigned device as the reason first."""
    with pytest.raises(QmpRefusedError) as refused:
        guest.monitor.execute("migrate", uri="exec:cat >/dev/null")
    assert refused.value.reason == "Migration not supported with SMMUv3 accelerator mode enabled"
    assert guest.monitor.execute("query-status")["status"] == "running"


@pytest.mark.covers("ACC-12")
@pytest.mark.guest
def test_reset_while_dma_is_in_flight(
    guest: Guest, host: Host, edu: Edu, testdev: IommuTestdev
) -> None:
    """The guest's devices work after a reset with DMA in flight: an edu's DMA, which begins 100 ms
    after its command, and the flood of an iommu-testdev."""
    before = host.kernel_log_time()
    flood = Dma(UNMAPPED, 1024 * ACCESS_BYTES, Direction.WRITE)
    storm = testdev.command(flood, times=100_000)
    guest.run(f"({storm}) >/dev/null 2>&1 &")
    mark = guest.event_queue().mark()
    guest.event_queue().wait_for(1024, mark)
    guest.run(edu.start_command(Dma(2 * UNMAPPED, 64, Direction.READ)))
    guest.monitor.execute("system_reset")
    guest.wait_ready()

    check_faults(guest, "edu", UNMAPPED)
    check_faults(guest, "iommu-testdev", 2 * UNMAPPED)
    said = host.kernel_log(before)
    assert not re.search(kernel_log.BUG, said), said
    # QEMU reads no events while it resets, so some may be lost. It may report that, and nothing
    # else.
    assert [line for line in guest.qemu_messages().splitlines() if "vEVENTQ(" not in line] == []
