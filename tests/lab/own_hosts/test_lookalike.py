"""The virtual host that looks like a bare-metal Grace: its devices are in PCI segments, their
StreamIDs are not their requester IDs, and it is used over SSH only."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from harness.artifacts.store import Store
from harness.checkout import ROOT
from harness.devices.nvme import Disk
from harness.errors import ProductError
from harness.guest.description import AssignedDevice, GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest
from harness.guest.mmio import Mmio, until32, write32, write64
from harness.host import pci
from harness.host.ability import DISK
from harness.host.host import Host
from harness.lab import inventory
from harness.lab.pool import Hosts
from harness.lab.software import Software
from harness.progress import Progress
from harness.smmu.events import EventType
from harness.smmu.klog import logged_events
from harness.waiting import wait_for

pytestmark = pytest.mark.lab

#: An address that is neither memory nor a doorbell in any guest.
OUTSIDE = 1 << 38

# Registers of an NVMe controller: NVM Express Base Specification 2.0, 3.1.3 and 3.1.4.
CC, CSTS, AQA, ASQ, ACQ, SQ0_TAIL = 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
CC_ENABLE = 4 << 20 | 6 << 16 | 1  # completions of 16 bytes, commands of 64 bytes, EN
READY = 1


@pytest.fixture(scope="module")
def lookalike(progress: Progress) -> Iterator[tuple[Host, Fleet]]:
    """Yield the lab's host, open, and its fleet."""
    lab = inventory.load(ROOT / "lab-inventory" / "lookalike.yaml")
    hosts = Hosts(lab, Software(), Store(), progress)
    try:
        yield hosts.open("lookalike")
    finally:
        hosts.close()


def test_its_kernel_runs_at_el2(lookalike: tuple[Host, Fleet]) -> None:
    host, _ = lookalike
    (mode,) = re.findall(r"kvm \[1\]: (.*) mode initialized", host.kernel_log())
    assert mode == "VHE"


def test_devices_are_in_segments_of_their_own(lookalike: tuple[Host, Fleet]) -> None:
    host, _ = lookalike
    assert [host.role(bdf) for bdf in host.devices] == ["nvme", "nvme", "nvme", "igb"] * 2
    segments = {device.iommu: device.segment for device in host.devices.values()}
    assert sorted(segments.values()) == [1, 2]
    for bdf, device in host.devices.items():
        assert device.segment == segments[device.iommu]
        assert host.stream_id(bdf) != device.requester_id
        group = host.connection.run(f"ls {pci.SYSFS}/{bdf}/iommu_group/devices").text
        assert group.split() == [bdf]
    assert len({host.stream_id(bdf) for bdf in host.devices}) == len(host.devices)


def test_it_is_used_over_ssh_only(lookalike: tuple[Host, Fleet]) -> None:
    host, _ = lookalike
    assert host.description.snapshots is None
    assert host.description.silicon is None
    assert {name for name in host.capabilities if name.startswith("cmdqv")} == {"cmdqv"}


def test_a_device_that_was_removed_is_found_again(lookalike: tuple[Host, Fleet]) -> None:
    host, _ = lookalike
    bdf = list(host.devices)[-2]
    before = pci.describe(host.session, [bdf])
    assert before[bdf].driver == "nvme"
    pci.remove(host.session, bdf)
    wait_for("the removal", lambda: not pci.is_present(host.session, bdf), deadline=10)
    pci.rescan(host.session)
    wait_for(
        "the device and its driver to come back",
        lambda: pci.describe(host.session, [bdf]) == before,
        deadline=10,
    )


@pytest.mark.parametrize("cmdqv", ["off", "on"])
def test_a_guest_reads_and_writes_its_disk(lookalike: tuple[Host, Fleet], cmdqv: str) -> None:
    """The device's DMA is translated and its interrupts arrive, whoever carries out the guest's
    commands."""
    _, fleet = lookalike
    with fleet.guests([GuestSpec((SmmuSpec((DISK,), properties=(("cmdqv", cmdqv),)),))]) as (
        guest,
    ):
        disk = Disk(guest, guest.device(DISK))
        written = disk.write_random(mib=1)
        assert disk.digest(mib=1) == written
        assert guest.qemu_messages() == ""


def fetch_commands_from(guest: Guest, device: AssignedDevice, address: int) -> None:
    """Take an NVMe from the guest's driver, and have it fetch its first command from an address."""
    # PCI_COMMAND, offset 4: memory space and bus master.
    guest.run(
        f"cd {device.sysfs} && echo {device.guest_bdf} >driver/unbind && echo 1 >enable && "
        r"printf '\6' | dd of=config bs=1 seek=4 conv=notrunc 2>/dev/null"
    )
    Mmio(guest, f"{device.sysfs}/resource0").run(
        write32(CC, 0),
        until32(CSTS, READY, 0),
        write32(AQA, 1 << 16 | 1),
        write64(ASQ, address),
        write64(ACQ, address),
        write32(CC, CC_ENABLE),
        until32(CSTS, READY, READY),
        write32(SQ0_TAIL, 1),
    )


def test_the_hosts_log_names_the_stream_id(lookalike: tuple[Host, Fleet]) -> None:
    """A DMA to an address outside of the guest's memory faults in stage 2, and the host's kernel
    logs the StreamID that the SMMU saw."""
    host, fleet = lookalike
    guests = [GuestSpec((SmmuSpec((DISK,)),), append="iommu.passthrough=1")]
    with fleet.guests(guests) as (guest,):
        device = guest.device(DISK)
        before = host.kernel_log_time()

        fetch_commands_from(guest, device, OUTSIDE)

        logged = wait_for(
            "the host's kernel to log the fault",
            lambda: logged_events(host.kernel_log(before)),
            deadline=10,
            error=ProductError,
        )
    record = logged[0].record
    assert (record.type, record.s2, record.input_addr) == (EventType.F_TRANSLATION, True, OUTSIDE)
    assert record.sid == host.stream_id(device.host_bdf)
    assert record.sid != host.devices[device.host_bdf].requester_id
