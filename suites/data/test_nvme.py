"""Data written to an assigned NVMe through nested translation reads back, whether QEMU emulates
the SMMU's commands or a CMDQV executes them."""

from __future__ import annotations

import pytest

from fixtures.guests import WITH_CMDQV
from harness.devices import fault_source
from harness.devices.dma import ACCESS_BYTES, UNMAPPED, Direction, Dma
from harness.devices.nvme import Disk
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.guest.hotplug import plug, unplug
from harness.smmu.events import EventType

WITHOUT_CMDQV = GuestSpec(smmus=(SmmuSpec(devices=("edu", "iommu-testdev", "nvme")),), cpus=2)
MIB = 4
#: The storm of events is a burst every 20 ms, which leaves the guest time for its own work.
BURST, PAUSE_MS, BURSTS = 16, 20, 200


class Data:
    """These tests run in both kinds of guest. Another test may have used the guest before."""

    @pytest.mark.covers("DATA-01")
    def test_what_is_written_reads_back(self, guest: Guest) -> None:
        disk = Disk(guest, guest.device("nvme"))
        pieces = {at: disk.write_random(mib=MIB, at_mib=at) for at in (0, 100)}
        assert {at: disk.digest(mib=MIB, at_mib=at) for at in pieces} == pieces
        assert len(set(pieces.values())) == len(pieces)

    @pytest.mark.covers("DATA-02")
    def test_while_events_storm(self, guest: Guest) -> None:
        """A storm of events and a disk's data do not disturb each other."""
        disk, storming = Disk(guest, guest.device("nvme")), fault_source(guest, "iommu-testdev")
        dma = Dma(UNMAPPED, BURST * ACCESS_BYTES, Direction.WRITE)
        queue = guest.event_queue()
        mark = queue.mark()
        storm = storming.command(dma, times=BURSTS, pause_ms=PAUSE_MS)
        guest.run(f"(taskset -c 1 {storm}; echo $? >/tmp/stormed) >/dev/null 2>&1 &")
        queue.wait_for(BURST, mark)

        written = disk.write_random(mib=MIB)
        assert disk.digest(mib=MIB) == written

        expected = dma.expected(EventType.F_TRANSLATION, storming.vsid) * BURSTS
        queue.expect(expected, mark, deadline=60)
        said = guest.run("until [ -s /tmp/stormed ]; do usleep 10000; done; cat /tmp/stormed")
        assert said.text == "0\n"

    @pytest.mark.covers("DATA-03")
    def test_across_unplug_and_plug(self, guest: Guest) -> None:
        nvme = guest.device("nvme")
        written = Disk(guest, nvme).write_random(mib=MIB, at_mib=50)
        unplug(guest, nvme)
        plug(guest, nvme)
        again = Disk(guest, nvme)
        assert again.digest(mib=MIB, at_mib=50) == written
        newly = again.write_random(mib=MIB, at_mib=50)
        assert again.digest(mib=MIB, at_mib=50) == newly != written


@pytest.mark.guest(WITHOUT_CMDQV, freshness=Freshness.SHARED)
class TestWithoutCmdqv(Data):
    pass


@pytest.mark.needs("cmdqv")
@pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED)
class TestWithCmdqv(Data):
    pass
