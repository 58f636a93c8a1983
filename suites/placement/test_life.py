"""A running guest with an accelerated SMMU survives refused devices, a refused migration, and a
reset while DMA is in flight."""

from __future__ import annotations

import re
from functools import partial

import pytest

from harness import kernel_log
from harness.devices import source, source_of
from harness.devices.dma import UNMAPPED, Direction
from harness.devices.source import FaultSource
from harness.errors import ProductError
from harness.guest import description
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import is_plugged
from harness.guest.root_port import RootPort
from harness.host.ability import ANY, WRITER, Ability
from harness.host.host import Host
from harness.qmp import QmpRefusedError
from harness.smmu.trace import TraceEvent
from harness.waiting import wait_for
from suites.placement.faults import check_faults
from suites.placement.messages import EMULATED, NO_IOMMUFD

#: The test plugs the hot device itself, without iommufd.
ROOM = GuestSpec(smmus=(SmmuSpec(devices=(WRITER,), hot=(ANY,)),))
PORT = GuestSpec(smmus=(SmmuSpec(devices=(WRITER,), empty=1),))
EMPTY = GuestSpec(smmus=(SmmuSpec(empty=1),))
#: A stage 2 belongs to one SMMU of the host.
SHARING = GuestSpec(smmus=(SmmuSpec(devices=(WRITER,)),) * 2, one_host_smmu=True)


def has_faulted(one: FaultSource) -> bool:
    """Return whether one of the latest events is of a source."""
    latest = one.guest.event_queue(one.assigned.smmu).latest(1024)
    return one.vsid in {record.sid for record in latest}


def has_behind(guest: Guest, port: RootPort) -> bool:
    """Return whether the guest has a device behind a root port."""
    device = f"/sys/bus/pci/devices/0000:{port.secondary_bus:02x}:00.0"
    return guest.run(f"test -e {device}", check=False).status == 0


@pytest.mark.covers("ACC-02")
@pytest.mark.guest(PORT)
@pytest.mark.parametrize("driver", ["edu", "e1000e", "virtio-rng-pci"])
def test_an_emulated_endpoint_is_refused(guest: Guest, writer: FaultSource, driver: str) -> None:
    port = RootPort(smmu=0, port=1)
    with pytest.raises(QmpRefusedError) as refused:
        guest.monitor.execute(
            "device_add", driver=driver, bus=description.port_id(0, port.port), id="emulated"
        )
    assert refused.value.reason == EMULATED
    assert not has_behind(guest, port)
    check_faults(writer)


@pytest.mark.covers("ACC-03")
@pytest.mark.guest(ROOM)
def test_a_device_without_iommufd_is_refused(guest: Guest, writer: FaultSource) -> None:
    device = guest.device(ANY)
    properties = description.device_properties(device)
    del properties["iommufd"]
    with pytest.raises(QmpRefusedError) as refused:
        guest.monitor.execute("device_add", **properties)
    assert refused.value.reason == NO_IOMMUFD
    assert not is_plugged(guest, device)
    check_faults(writer)


@pytest.mark.covers("ACC-04")
@pytest.mark.guest(EMPTY)
def test_a_bridge_may_be_plugged(guest: Guest) -> None:
    port = RootPort(smmu=0, port=0)
    guest.monitor.execute(
        "device_add", driver="pcie-pci-bridge", bus=description.port_id(0, port.port), id="bridge"
    )
    wait_for(
        "the guest to find the bridge",
        lambda: has_behind(guest, port),
        deadline=10,
        error=ProductError,
    )


@pytest.mark.covers("ACC-09")
@pytest.mark.guest(SHARING)
def test_two_smmus_share_addresses_and_stage_2(guest: Guest) -> None:
    """The guest's memory is the same for all its devices, so QEMU needs one IOAS and one stage 2
    for both SMMUs."""
    trace = guest.trace()
    hwpts = trace.named(TraceEvent.ALLOC_HWPT)
    stage2 = [line.number("out_hwpt") for line in hwpts if line.number("hwpt_type") == 0]
    assert len(stage2) == 1
    assert trace.numbers(TraceEvent.ALLOC_VIOMMU, "hwpt_id") == stage2 * 2
    assert len(set(trace.numbers(TraceEvent.ALLOC_VIOMMU, "viommu_id"))) == 2
    check_faults(source(guest, Ability.WRITE, smmu=0))
    check_faults(source(guest, Ability.WRITE, smmu=1), 2 * UNMAPPED)


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
    guest: Guest, host: Host, reader: FaultSource, flooder: FaultSource
) -> None:
    """The guest's devices work after a reset with DMA in flight: the reads of one device, and the
    flood of another."""
    before = host.kernel_log_time()
    read, flood = reader.burst(1, 2 * UNMAPPED, Direction.READ), flooder.burst(1024)
    for one, dma in ((reader, read), (flooder, flood)):
        guest.run(f"({one.command(dma, times=1_000_000)}) >/dev/null 2>&1 &")
        wait_for(f"{one} to fault", partial(has_faulted, one), deadline=10, error=ProductError)
    guest.monitor.execute("system_reset")
    guest.wait_ready()

    check_faults(source_of(guest, reader.assigned, Ability.READ))
    check_faults(source_of(guest, flooder.assigned, Ability.WRITE, Ability.FLOOD), 2 * UNMAPPED)
    said = host.kernel_log(before)
    assert not re.search(kernel_log.BUG, said), said
    # QEMU reads no events while it resets, so some may be lost. It may report that, and nothing
    # else.
    assert [line for line in guest.qemu_messages().splitlines() if "vEVENTQ(" not in line] == []
